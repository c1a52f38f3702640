"""Images of another data set, in the classes of a run: external validation."""

from dataclasses import replace

import numpy as np

from fedkd.data.images import LabelledImages
from fedkd.errors import ConfigError, first_of


def in_classes_of(
    train: LabelledImages, images: LabelledImages, what: str
) -> tuple[LabelledImages, list[str]]:
    """The images whose class the run knows, labelled by the run's classes.

    Classes are the same if their names are, in capital or small letters (which count only where
    they tell classes of the run apart). Images of a class that the run does not know are left out,
    which is noted: no prediction of them could be right. A class without images here stays a class
    that may be predicted, has no recall, and enters no mean.

    Args:
        train: The run's training images.
        images: The others.
        what: They are, for texts.

    Returns:
        The images, and what a reader of their scores must know, a line each.

    Raises:
        ConfigError: No class is the same, or pixels are not as in training.
    """
    ours, theirs = train.images, images.images
    if ours.shape[1:] != theirs.shape[1:] or ours.dtype != theirs.dtype:
        raise ConfigError(
            f"{what} has {theirs.dtype} images of {_size(images)}, but the run was trained on "
            f"{ours.dtype} ones of {_size(train)}; give the same, such as "
            f"data.size={ours.shape[-1]}"
        )
    folded = {name.casefold() for name in train.class_names}
    plain = str.casefold if len(folded) == train.num_classes else str
    number_of = {plain(name): number for number, name in enumerate(train.class_names)}
    numbers = np.array([number_of.get(plain(name), -1) for name in images.class_names])
    labels = numbers[images.labels]
    known = np.flatnonzero(labels >= 0)
    if not len(known):
        raise ConfigError(
            f"{what} has no image of a class of the run: its classes are "
            f"{', '.join(images.class_names)}, the run's {', '.join(train.class_names)}; classes "
            "are matched by name, so name them alike"
        )
    notes = []
    counts = images.class_counts()
    unknown = {n: int(c) for n, c, k in zip(images.class_names, counts, numbers, strict=True)
               if k < 0 and c}  # fmt: skip
    if unknown:
        named = ", ".join(f"{name} {count}" for name, count in unknown.items())
        notes.append(
            f"{what}: {len(images) - len(known)} of {len(images)} images are left out, as the run "
            f"does not know their classes ({named})"
        )
    lacking = np.setdiff1d(np.arange(train.num_classes), labels[known])
    if len(lacking):
        names = [train.class_names[number] for number in lacking]
        notes.append(f"{what} has no image of {', '.join(names)}; no mean counts them")
    found = images.subset(known)
    return replace(found, labels=labels[known], class_names=train.class_names), notes


def overlap(train: LabelledImages, images: LabelledImages, what: str) -> list[str]:
    """A line each if images, and if lesions or patients, have the names of training ones.

    Row numbers are no names.
    """
    notes = []
    for kind, ours, theirs in (
        ("images", train.ids, images.ids),
        ("lesions or patients", train.groups, images.groups),
    ):
        named = {name for name in ours if not name.isdecimal()} - {""}
        if both := sorted(named & set(theirs)):
            notes.append(
                f"{what}: {len(both)} {kind} have the name of one that the run was trained on "
                f"({first_of(both)}); if they are the same, these scores are no external validation"
            )
    return notes


def _size(images: LabelledImages) -> str:
    channels, height, width = images.images.shape[1:]
    return f"{channels} x {height} x {width}"
