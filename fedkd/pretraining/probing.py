"""What features are worth while they are learned: neighbours and a linear probe, on val."""

import logging
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedkd.data.catalog import load_splits
from fedkd.pretraining.config import ProbeConfig
from fedkd.pretraining.images import normalize
from fedkd.pretraining.statistics import at_size
from fedkd.probing import worth
from fedkd.probing.controls import Reader

logger = logging.getLogger(__name__)

_AT_ONCE = 256
_REPORT_EVERY_S = 5.0


class ValProbe:
    """Labelled images on which features are tried, as `fedkd probe` does; test is never read.

    Args:
        config: Which data set; its ``data`` is given.
        size: Side in px at which the teacher reads.

    Raises:
        DataError: No train or val image, or training images of one class.
    """

    def __init__(self, config: ProbeConfig, size: int) -> None:
        assert config.data is not None
        self._splits, self._size = load_splits(config.data), size
        worth.check(self._splits, ["val"])
        self._spoke = time.monotonic()

    def scores(
        self, backbone: nn.Module, methods: Sequence[worth.Method] = worth.METHODS
    ) -> dict[str, float | None]:
        """Balanced accuracy and macro-AUROC on val by method, such as ``knn_balanced_accuracy``.

        Fractions; macro-AUROC is None where all val images are of one class. The linear probe's
        strength is chosen on the same val images, which flatters it a little.
        """
        self._spoke = time.monotonic()
        training, device = backbone.training, next(backbone.parameters()).device
        reader = Reader(device, _AT_ONCE, self._tell)

        def features(pixels: Tensor) -> Tensor:
            inputs = normalize(at_size(pixels, self._size))
            read: Tensor = backbone(inputs.to(memory_format=torch.channels_last))
            return read

        backbone.eval()
        images = {"train": self._splits.train, "val": self._splits.val}
        own = {name: reader.features(f"features of {name}", features, some)
               for name, some in images.items()}  # fmt: skip
        backbone.train(training)
        rows = worth.judge(self._splits, {worth.TEACHER: own}, reader, 0, methods)
        return {
            f"{row['method']}_{score}": None if row[score] is None else round(row[score], 4)
            for row in worth.table(rows)
            for score in ("balanced_accuracy", "macro_auroc")
        }

    def _tell(self, what: str, done: int, total: int) -> None:
        if time.monotonic() - self._spoke >= _REPORT_EVERY_S:
            self._spoke = time.monotonic()
            logger.info("probe: %s %d/%d", what, done, total)
