"""Checks of the images and clients of an experiment, before any training."""

import logging
from itertools import combinations

import numpy as np

from fedkd.data.augment import CLAMPS
from fedkd.data.images import SPLITS, Integers, LabelledImages, Splits
from fedkd.errors import DataError, PartitionError, first_of
from fedkd.fourier.generators.generator import MIN_SIZE
from fedkd.partition import Partition
from fedkd.recipe import Recipe

logger = logging.getLogger(__name__)


def check_images(splits: Splits, recipe: Recipe) -> None:
    """Refuse images that students, teachers or prompts cannot take (DataError)."""
    check_selection(splits, recipe)
    for name in SPLITS:
        check_split(name, getattr(splits, name), recipe)


def check_selection(splits: Splits, recipe: Recipe) -> None:
    """Refuse val images on which rounds cannot be compared as the recipe asks (DataError)."""
    if recipe.evaluation.select_on == "macro_auroc" and len(np.unique(splits.val.labels)) == 1:
        raise DataError(
            "all val images are of one class, on which evaluation.select_on = 'macro_auroc' is not "
            "defined; use images of two classes at least, or select on balanced_accuracy"
        )
    if recipe.objective.name == "moco":
        for what, found in (
            ("show one lesion or patient (group)", splits.val.shown),
            ("are of one class", splits.val.labels.tolist()),
        ):
            if len(set(found)) == 1:
                raise DataError(
                    f"all val images {what}; objective.name = 'moco' is scored by nearest "
                    "neighbours among the labelled val images, each by those of other lesions or "
                    "patients, and needs two of each at least"
                )


def check_split(name: str, images: LabelledImages, recipe: Recipe) -> None:
    """Refuse images of one split that students, teachers or prompts cannot take (DataError)."""
    if not len(images):
        raise DataError(f"the {name} split is empty; it needs at least one image")
    if images.images.shape[1] != 3:
        raise DataError(
            f"{name} images have {images.images.shape[1]} channels; students and teachers "
            "take 3 (repeat a grey channel three times)"
        )
    height, width = images.images.shape[2:]
    if recipe.objective.name == "fopro" and min(height, width) < MIN_SIZE:
        raise DataError(
            f"{name} images are {height}x{width} px; Fourier prompts need "
            f"at least {MIN_SIZE}x{MIN_SIZE}: use larger images or objective.name = 'ekd'"
        )
    # Floats were given and are in memory; uint8 may be a large file, of which nothing is read.
    if images.images.dtype == np.uint8:
        return
    values = np.asarray(images.images)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=(1, 2, 3)))[0])
        raise DataError(
            f"{name} images hold values that are not finite, the first in row {row} (image "
            f"{images.ids[row]}); remove or repair it"
        )
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        return
    if recipe.objective.name == "fopro":
        raise DataError(
            f"{name} images are floats from {low:.3g} to {high:.3g}, but Fourier prompts "
            "need pixels in [0, 1]; give uint8 or unnormalised images, or use "
            "objective.name = 'ekd'"
        )
    if recipe.objective.name == "moco":
        raise DataError(
            f"{name} images are floats from {low:.3g} to {high:.3g}, but the views of "
            "objective.name = 'moco' clamp colours to [0, 1]; give uint8 or unnormalised images"
        )
    # Clamped in training alone, they would be others there than in val and test.
    if recipe.augmentation.name in CLAMPS:
        raise DataError(
            f"{name} images are floats from {low:.3g} to {high:.3g}, but augmentation.name = "
            f"{recipe.augmentation.name!r} clamps colours to [0, 1]; give uint8 or "
            "unnormalised images, or use augmentation.name = 'dihedral' or 'none'"
        )


def check_clients(divided: Partition, recipe: Recipe) -> None:
    """Refuse clients with too few training images for a step (PartitionError)."""
    batch_size = recipe.training.batch_size
    needed = batch_size if recipe.training.drop_last else 2
    few = [
        f"{name} ({len(rows)})"
        for name, rows in zip(divided.client_names, divided.indices, strict=True)
        if len(rows) < needed
    ]
    if few:
        why = f"one full batch of {batch_size}" if recipe.training.drop_last else "2 (BatchNorm)"
        raise PartitionError(
            f"clients with too few training images: {first_of(few)}; each needs {why}: raise "
            "partition.min_examples or use fewer clients"
        )


def check_held_out(
    images: LabelledImages, split: str, rows: tuple[Integers, ...], exchange: str
) -> None:
    """Where clients keep a part of their students, each held-out image needs one to predict it.

    Raises:
        DataError: Images that belong to no client.
    """
    orphans = np.setdiff1d(np.arange(len(images)), np.concatenate(rows))
    if len(orphans):
        row = int(orphans[0])
        raise DataError(
            f"{len(orphans)} {split} images belong to no client, the first {images.ids[row]} of "
            f"site {images.site_names[images.sites[row]]!r} and class "
            f"{images.class_names[images.labels[row]]!r}; with strategy.exchange = {exchange!r} "
            "no student can predict them: leave them out, or use strategy.exchange = 'all'"
        )


def note_neighbours(recipe: Recipe) -> None:
    """Say how moco is scored, and when colours are changed twice."""
    logger.info(
        "objective moco trains no classifier: val and test are scored by nearest neighbours (kNN) "
        "among the labelled val images; no training label is read"
    )
    if recipe.augmentation.name in CLAMPS:
        logger.info(
            "augmentation.name is %r, but moco's views change colours themselves; none or dihedral "
            "suits it better",
            recipe.augmentation.name,
        )


def check_groups(splits: Splits) -> None:
    """Refuse a lesion or patient that stands in two splits, where the user made them (DataError).

    Published splits are used as they are; data sets of fedkd see to their own.
    """
    for first, second in combinations(SPLITS, 2):
        groups = [set(getattr(splits, split).groups) - {""} for split in (first, second)]
        if both := sorted(groups[0] & groups[1]):
            raise DataError(
                f"{len(both)} lesions or patients (groups) are in both {first} and {second}, which "
                f"leaks: {first_of(both)}; put each into one split. A name must mean the same "
                "everywhere: put the hospital's before it where hospitals count for themselves"
            )
