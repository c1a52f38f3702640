"""The embedded data set ``lesions``: synthetic dermoscopy-like images from simulated hospitals.

For learning the toolkit, for tests and for comparing methods where no data can be had. The images
are drawn by formulas (:mod:`fedkd.data.sets.lesion_images`, :mod:`fedkd.data.sets.acquisition`);
they are no substitute for real data, and no figure reached on them says anything about patients.

Class names and their order are those of the ISIC 2019 challenge, and classes are ranked by size
as there; everything else is our choice.
"""

import logging
import time
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
from pydantic import Field, model_validator

from fedkd.config import Section
from fedkd.data.cache import load_or_build
from fedkd.data.card import DataCard
from fedkd.data.images import SPLITS, Integers, LabelledImages, Splits
from fedkd.data.longtail import exponential_counts
from fedkd.data.sets.acquisition import Hospital, hospital, photograph
from fedkd.data.sets.case_mix import Floats, assign_sites, case_mix
from fedkd.data.sets.lesion_images import CLASS_NAMES, draw_lesion
from fedkd.seeding import rng as derived_rng

logger = logging.getLogger(__name__)

GENERATOR_VERSION = 1
"""Part of the cache key; goes up with every change that changes an image."""

BY_SIZE = ("NV", "MEL", "BCC", "BKL", "AK", "SCC", "VASC", "DF")
"""Classes from head to tail, in the order of ISIC 2019's training counts."""

_COMMON = CLASS_NAMES.index(BY_SIZE[0])
_REPORT_EVERY_S = 5.0


CARD = DataCard(
    title="Synthetic lesions, drawn by fedkd",
    licence="Apache-2.0, as fedkd; says nothing about patients",
)


class LesionsConfig(Section):
    """Embedded synthetic lesions: 8 classes, a long tail, any number of differing hospitals."""

    name: Literal["lesions"] = "lesions"
    """Selects this data set."""
    size: int = Field(64, ge=16, le=256)
    """Width and height of the images in pixels, 16..256."""
    num_train: int = Field(1600, ge=len(CLASS_NAMES), le=10_000_000)
    """Training images of all classes and hospitals together, >= 8."""
    imbalance_factor: float = Field(50.0, ge=1)
    """Training images of the largest class over those of the smallest, >= 1; 1 is balanced."""
    num_val_per_class: int = Field(20, ge=1, le=1_000_000)
    """Validation images of each class, >= 1."""
    num_test_per_class: int = Field(50, ge=1, le=1_000_000)
    """Test images of each class, >= 1."""
    num_sites: int = Field(4, ge=1, le=10_000)
    """Number of hospitals, >= 1 and at most the training images of the largest class."""
    seed: int = Field(0, ge=0)
    """Seed of images, hospitals and case mix, >= 0. Independent of the seed of training."""

    @model_validator(mode="after")
    def _every_site_has_images(self) -> "LesionsConfig":
        most = int(train_counts(self).max())
        if self.num_sites > most:
            raise ValueError(
                f"num_sites is {self.num_sites} but the largest class has only {most} training "
                "images, one per site are needed; lower num_sites or raise num_train"
            )
        return self


def train_counts(config: LesionsConfig) -> Integers:
    """Training images per class, int64 (8,), in the order of the class names."""
    counts = np.zeros(len(CLASS_NAMES), np.int64)
    order = [CLASS_NAMES.index(name) for name in BY_SIZE]
    counts[order] = exponential_counts(config.num_train, len(order), config.imbalance_factor)
    return counts


def load(config: LesionsConfig, cache_dir: Path | None = None) -> Splits:
    """Train, val and test; drawn the first time, read from the cache afterwards.

    Train is long-tailed and follows the hospitals' case mix. Val and test hold every class equally
    often, each image from one of the hospitals that see its class, all equally likely. An image
    depends on seed, size, split, class, its number within the class, and its hospital: val and test
    stay the same whatever ``num_train``, and growing them only adds images.

    Args:
        config: What to draw; the same config gives the same bytes.
        cache_dir: Where to keep the images; by default the user's cache.
    """
    # NumPy and Pillow may round otherwise in another version: what is cached must be what is drawn.
    versions = f"{GENERATOR_VERSION} numpy {np.__version__} pillow {PIL.__version__}"
    key = f"generator {versions} {config.model_dump_json()}"
    return load_or_build("lesions", key, lambda: _build(config), cache_dir)


def _build(config: LesionsConfig) -> Splits:
    num_classes = len(CLASS_NAMES)
    counts = {
        "train": train_counts(config),
        "val": np.full(num_classes, config.num_val_per_class),
        "test": np.full(num_classes, config.num_test_per_class),
    }
    mix = case_mix(config.seed, config.num_sites, num_classes, _COMMON)
    hospitals = [hospital(config.seed, site) for site in range(config.num_sites)]
    progress = _Progress(sum(int(part.sum()) for part in counts.values()), config.size)
    train, val, test = (
        _draw_split(config, split, counts[split], mix, hospitals, progress) for split in SPLITS
    )
    return Splits(train, val, test)


def _draw_split(
    config: LesionsConfig,
    split: str,
    counts: Integers,
    mix: Floats,
    hospitals: list[Hospital],
    progress: "_Progress",
) -> LabelledImages:
    images = np.empty((int(counts.sum()), 3, config.size, config.size), np.uint8)
    labels = np.repeat(np.arange(len(counts)), counts)
    sites = np.concatenate(_sites(config.seed, split, counts, mix))
    ids = []
    for row, label in enumerate(labels):
        number = row - int(counts[:label].sum())
        rng = derived_rng(config.seed, f"lesions/{split}", int(label), number)
        settings = hospitals[sites[row]]
        closeness = settings.magnification * float(np.exp(rng.normal(0, 0.06)))
        skin = draw_lesion(int(label), config.size, rng, closeness)
        images[row] = photograph(skin, settings, rng)
        ids.append(f"{split}-{CLASS_NAMES[label]}-{number:05d}")
        progress.step()
    return LabelledImages(
        images=images,
        labels=labels,
        class_names=CLASS_NAMES,
        sites=sites,
        site_names=tuple(f"hospital_{site}" for site in range(config.num_sites)),
        ids=tuple(ids),
    )


def _sites(seed: int, split: str, counts: Integers, mix: Floats) -> list[Integers]:
    """Hospital of every image, class by class."""
    if split == "train":
        return assign_sites(mix, counts, _COMMON)
    drawn = []
    for label, count in enumerate(counts):
        rng = derived_rng(seed, f"lesions/{split}/sites", label)
        drawn.append(rng.choice(np.flatnonzero(mix[:, label]), size=int(count)).astype(np.int64))
    return drawn


class _Progress:
    """Says in the log that drawing starts, and how far it is every few seconds."""

    def __init__(self, total: int, size: int) -> None:
        self.total = total
        self.done = 0
        self.last = time.monotonic()
        logger.info("drawing %d synthetic lesion images of %d px ...", total, size)

    def step(self) -> None:
        self.done += 1
        if time.monotonic() - self.last >= _REPORT_EVERY_S:
            self.last = time.monotonic()
            logger.info("drew %d of %d lesion images", self.done, self.total)
