"""What a teacher has to beat: raw pixels, and its own network before any training."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from fedkd import seeding
from fedkd.data.images import LabelledImages
from fedkd.data.loading import Loader, in_order
from fedkd.models.batchnorm import batchnorms, measured_anew
from fedkd.models.factory import STUDENTS, headless
from fedkd.teachers import zoo
from fedkd.teachers.config import OneTeacherConfig
from fedkd.teachers.frozen import Teacher
from fedkd.teachers.layouts.from_timm import build_timm
from fedkd.teachers.loading import weights_path
from fedkd.teachers.stored import load_pretrained

Features = npt.NDArray[np.float32]
Tell = Callable[[str, int, int], None]
"""Told what is being done, how many are done, and of how many."""

RAW_SIDE = 16
STATISTICS_BATCHES = 10


@dataclass(frozen=True)
class Reader:
    """How images are read for features.

    Attributes:
        device: Where batches go.
        batch_size: Images per batch.
        tell: Told of each batch.
    """

    device: torch.device
    batch_size: int
    tell: Tell

    def features(
        self, what: str, compute: Callable[[Tensor], Tensor], images: LabelledImages
    ) -> Features:
        """Features of all images in their order, float32 (num_images, num_features).

        Args:
            what: For the progress.
            compute: Maps pixels (batch, 3, height, width) to features (batch, num_features).
            images: At least one.
        """
        rows = np.arange(len(images))
        loader = Loader(images, rows, self.device, torch.float32)
        parts: list[Features] = []
        self.tell(what, 0, len(images))
        with torch.no_grad(), closing(loader.batches(self._plan(rows))) as batches:
            for pixels, _ in batches:
                parts.append(compute(pixels).float().cpu().numpy())
                self.tell(what, sum(map(len, parts)), len(images))
        return np.concatenate(parts)

    def measure_batchnorm(self, teacher: Teacher, images: LabelledImages, seed: int) -> None:
        """Set BatchNorm's running statistics to plain averages over some images, in place.

        Over ten batches, or all images where these are fewer; nothing without BatchNorm.
        """
        if not batchnorms(teacher):
            return
        rows = seeding.rng(seed, "probe-statistics").permutation(len(images))
        loader = Loader(images, rows[: STATISTICS_BATCHES * self.batch_size], self.device,
                        torch.float32)  # fmt: skip
        plan = [part for part in self._plan(loader.indices) if len(part) > 1]
        with (
            torch.no_grad(),
            measured_anew(teacher),
            closing(loader.batches(plan)) as batches,
        ):
            for number, (pixels, _) in enumerate(batches, start=1):
                teacher(pixels)
                self.tell("statistics of the untrained network", number, len(plan))

    def _plan(self, rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        return in_order(len(rows), self.batch_size)


def raw_pixels(pixels: Tensor) -> Tensor:
    """Mean colours of 16 x 16 areas, float (batch, 768)."""
    return F.adaptive_avg_pool2d(pixels, RAW_SIDE).flatten(1)


def untrained(config: OneTeacherConfig, teacher: Teacher, seed: int) -> Teacher:
    """The teacher's network with random weights, and with its input normalisation and size.

    Args:
        config: What the teacher was opened from.
        teacher: It, opened.
        seed: Of the weights, which are drawn as the network's library draws them.
    """
    with seeding.isolated(seed, "probe-untrained"):
        backbone = _build(config, teacher)
    return Teacher(
        f"untrained {config.name}",
        backbone,
        num_features=teacher.num_features,
        mean=teacher.mean.flatten().tolist() or None,
        std=teacher.std.flatten().tolist() or None,
        input_size=teacher.input_size,
        head=None,
        head_kind="none",
    ).to(teacher.mean.device)


def _build(config: OneTeacherConfig, teacher: Teacher) -> nn.Module:
    if config.name in ("default", zoo.PRETRAINED):
        stored = load_pretrained(weights_path(config))
        return STUDENTS[stored.architecture].build()[0]
    card = zoo.card_of(config.name)
    if card.layout != "timm":
        return headless(torchvision.models.get_model(card.architecture, weights=None))[0]
    return build_timm(card, teacher.input_size)
