"""What features are worth while they are learned: neighbours and a linear probe, on val."""

import logging
import time

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.data.catalog import load_splits
from fedkd.data.images import LabelledImages
from fedkd.data.loading import in_order
from fedkd.errors import DataError
from fedkd.pretraining.config import ProbeConfig
from fedkd.pretraining.images import normalize, pixels_of
from fedkd.pretraining.statistics import at_size
from fedkd.probing.linear import linear_probe, score
from fedkd.probing.neighbours import knn_probabilities

logger = logging.getLogger(__name__)

NEIGHBOURS = 20
_AT_ONCE = 256
_REPORT_EVERY_S = 5.0


class ValProbe:
    """Labelled images on which features are tried; test images are never read.

    Args:
        config: Which data set; its ``data`` is given.
        size: Side in px at which the teacher reads.

    Raises:
        DataError: A class of val that train has no image of, or no val image.
    """

    def __init__(self, config: ProbeConfig, size: int) -> None:
        assert config.data is not None
        splits = load_splits(config.data)
        self._train, self._val, self._size = splits.train, splits.val, size
        names = splits.train.class_names
        if missing := [names[c] for c in np.flatnonzero(splits.train.class_counts() == 0)]:
            raise DataError(
                f"probe.data has no training image of {', '.join(missing)}; a probe needs one of "
                "each class: choose other data, or leave [probe] out"
            )
        if len(np.unique(splits.val.labels)) < 2:
            raise DataError(
                f"probe.data has {len(splits.val)} val images of less than two classes; choose "
                "other data, or leave [probe] out"
            )

    def neighbours(self, backbone: nn.Module) -> dict[str, float]:
        """Balanced accuracy on val by the nearest training images, a fraction."""
        logger.info("probe: features of %d images ...", len(self._train) + len(self._val))
        return self._neighbours(*self._features(backbone))

    def everything(self, backbone: nn.Module) -> dict[str, float]:
        """That, and balanced accuracy and macro-AUROC on val of a linear probe.

        The probe's strength is chosen on the same val images, which flatters it a little.
        """
        logger.info("probe: features of %d images ...", len(self._train) + len(self._val))
        train, val = self._features(backbone)
        logger.info("probe: fitting a linear classifier to %d features ...", train.shape[1])
        fitted = linear_probe(
            train.numpy(), self._train.labels, val.numpy(), self._val.labels, val.numpy()
        )
        reached = score(fitted.val, self._val.labels)
        return {
            **self._neighbours(train, val),
            "linear_balanced_accuracy": round(reached.balanced_accuracy, 4),
            "linear_macro_auroc": round(reached.macro_auroc, 4),
        }

    def _neighbours(self, train: Tensor, val: Tensor) -> dict[str, float]:
        labels = torch.from_numpy(self._train.labels)
        found = knn_probabilities(train, labels, val, self._train.num_classes, k=NEIGHBOURS)
        reached = score(found.numpy(), self._val.labels)
        return {"knn_balanced_accuracy": round(reached.balanced_accuracy, 4)}

    def _features(self, backbone: nn.Module) -> tuple[Tensor, Tensor]:
        training = backbone.training
        backbone.eval()
        features = tuple(self._of(backbone, images) for images in (self._train, self._val))
        backbone.train(training)
        return features[0], features[1]

    @torch.no_grad()
    def _of(self, backbone: nn.Module, images: LabelledImages) -> Tensor:
        """Float32 (num_images, num_features), on the CPU."""
        device = next(backbone.parameters()).device
        parts, last = [], time.monotonic()
        for rows in in_order(len(images), _AT_ONCE):
            pixels = at_size(pixels_of(images.images, rows, device), self._size)
            pixels = normalize(pixels).to(memory_format=torch.channels_last)
            parts.append(backbone(pixels).float().cpu())
            if time.monotonic() - last >= _REPORT_EVERY_S:
                last = time.monotonic()
                logger.info("probe: %d of %d images", rows[-1] + 1, len(images))
        return torch.cat(parts)
