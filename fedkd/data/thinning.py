"""The long-tail builder: thins out the training images of any data set, class by class."""

import difflib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from fedkd import seeding
from fedkd.config import Section
from fedkd.data.images import Integers, Splits
from fedkd.data.longtail import realised_imbalance
from fedkd.errors import ConfigError

logger = logging.getLogger(__name__)


class LongTailConfig(Section):
    """How many training images of each class stay; without a key, all do."""

    imbalance_factor: float | None = Field(default=None, ge=1, le=1e6)
    """Images of the largest class over images of the smallest, 1 (balanced) to 1e6; those between
    fall exponentially. As many images stay as this allows. Not given means no exponential tail."""

    order: tuple[str, ...] = ()
    """Classes from largest to smallest, for ``imbalance_factor``; left out, by their number of
    training images in the data set."""

    counts: dict[str, Annotated[int, Field(ge=0)]] = {}
    """Training images of each class that is named, instead of ``imbalance_factor``; 0 takes the
    class out. Classes that are not named keep all."""

    seed: int = Field(default=0, ge=0)
    """Seed of the choice of images. It is not the recipe's, so that runs with other seeds see the
    same images."""

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> "LongTailConfig":
        if self.counts and self.imbalance_factor is not None:
            raise ValueError(
                "long_tail.imbalance_factor and long_tail.counts are both given; each decides how "
                "many images a class has: keep one of them"
            )
        if self.order and self.imbalance_factor is None:
            raise ValueError(
                "long_tail.order is given without long_tail.imbalance_factor, to which it belongs; "
                "give both or neither"
            )
        if twice := [name for name, number in Counter(self.order).items() if number > 1]:
            raise ValueError(
                f"long_tail.order names {', '.join(map(repr, twice))} more than once; name each "
                "class once"
            )
        return self

    @property
    def is_given(self) -> bool:
        """Whether anything is to be thinned out."""
        return self.imbalance_factor is not None or bool(self.counts)


def thin(config: LongTailConfig, splits: Splits) -> Splits:
    """The splits with a long-tailed train; val and test are the same objects.

    Training images keep their order. A line of the log tells how many stay of each class: lesions
    and patients are not cut in two, so that it may be other numbers than those asked for. Published
    bounds of head and tail are dropped with the first image, as they are about the whole data set.

    Args:
        config: What is wanted; without a key, the splits are returned as they are.
        splits: Any data set.

    Raises:
        ConfigError: Classes that the data set does not have, more images than it has, or counts of
            0 that take other classes with them.
    """
    if not config.is_given:
        return splits
    train = splits.train
    names, available = train.class_names, train.class_counts()
    if config.imbalance_factor is None:
        wanted = _given_counts(config.counts, names, available)
    else:
        ranking = _ranking(config.order, names, available)
        wanted = exponential_profile(available, config.imbalance_factor, ranking)
    units = _units(train.groups)
    labels = train.labels.tolist()
    contents = [Counter(labels[row] for row in rows) for rows in units]
    kept = choose_units(contents, wanted, names, seeding.rng(config.seed, "long tail"))
    rows = np.sort(np.array([row for unit in kept for row in units[unit]], np.int64))
    if len(rows) < len(train):
        splits = replace(splits, train=train.subset(rows), bounds=None)
    counts = splits.train.class_counts()
    asked = "" if config.imbalance_factor is None else f", asked {config.imbalance_factor:g} : 1"
    logger.info(
        "long tail: %d of %d training images stay; largest : smallest class %.4g : 1%s; images "
        "kept / wanted / in the data: %s",
        len(rows),
        len(train),
        realised_imbalance(counts),
        asked,
        ", ".join(
            f"{names[number]} {counts[number]} / {wanted[number]} / {available[number]}"
            for number in np.argsort(-wanted, kind="stable")
        ),
    )
    return splits


def exponential_profile(
    available: Integers, imbalance_factor: float, ranking: Integers
) -> Integers:
    """Images per class of the largest exponential long tail that the data set can supply.

    The class of rank r among the C that have images gets n_max * imbalance_factor^(-r / (C - 1)),
    rounded, and one at least. n_max is the largest for which no class needs more images than it has
    (our choice: the ratio asked for counts more than the number of images). So a class that is
    small already makes those before it smaller. The more imbalanced, the more images of the first
    class and the fewer of the last.

    Args:
        available: Images per class, int64 (num_classes,), >= 0.
        imbalance_factor: Largest over smallest count, in [1, 1e6]; 1 makes all classes as large as
            the smallest.
        ranking: Class indices, the largest class first, int64 (num_classes,).

    Returns:
        int64 (num_classes,), at most ``available``; 0 only for a class that has none. A single
        class keeps all.

    Source: Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
    NeurIPS 2019, and Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR
    2019 (long-tailed CIFAR). Differs: there all classes are equally large, so that n_max is that
    size; and they round down, by which a class may be lost.
    """
    present = ranking[available[ranking] > 0]
    wanted = np.zeros_like(available)
    if len(present):
        shares = imbalance_factor ** -(np.arange(len(present)) / max(len(present) - 1, 1))
        largest = (available[present] / shares).min()
        wanted[present] = np.maximum(np.rint(largest * shares), 1)
    return wanted


def choose_units(
    contents: Sequence[Counter[int]],
    wanted: Integers,
    class_names: Sequence[str],
    rng: np.random.Generator,
) -> list[int]:
    """Draw what stays, in units (lesions, patients, single images) that are never divided.

    First each class that is wanted gets one unit, so that none is lost; it is one that fits or, if
    none does, that goes over the wanted numbers least. Only so can a class have more images than
    wanted. Then come, class by class from the smallest, all units in random order that still fit,
    so that no unit is left out that would fit (our choice: a search for the nearest sum would
    favour units of certain sizes). Where all units are single images, each class has exactly what
    is wanted, and those of a smaller number are among those of a larger.

    Args:
        contents: For each unit its images by class.
        wanted: Images per class, int64 (num_classes,), at most as many as there are.
        class_names: One per class, for the error.
        rng: Draws the order of units.

    Returns:
        Units that stay. It ends after two looks at each unit of each class.

    Raises:
        ConfigError: A wanted class that is found only together with classes of which 0 are wanted.
    """
    by_class: list[list[int]] = [[] for _ in class_names]
    for unit in rng.permutation(len(contents)).tolist():
        for number in contents[unit]:
            by_class[number].append(unit)
    room = wanted.tolist()
    kept: dict[int, None] = {}

    def excess(unit: int) -> int:
        return sum(max(num - max(room[number], 0), 0) for number, num in contents[unit].items())

    def take(unit: int) -> None:
        kept[unit] = None
        for number, num in contents[unit].items():
            room[number] -= num

    smallest_first = [int(c) for c in np.argsort(wanted, kind="stable") if wanted[c] > 0]
    for number in smallest_first:
        if room[number] == wanted[number]:
            allowed = [u for u in by_class[number] if all(wanted[c] > 0 for c in contents[u])]
            if not allowed:
                raise ConfigError(
                    f"long_tail.counts would leave no image of {class_names[number]!r}: each shows "
                    "a lesion or patient that also has images of a class of which 0 are wanted; "
                    f"set the count of {class_names[number]!r} to 0 too, or the other's above 0"
                )
            take(min(allowed, key=excess))
    for number in smallest_first:
        for unit in by_class[number]:
            if unit not in kept and excess(unit) == 0:
                take(unit)
    return list(kept)


def _units(groups: Sequence[str]) -> list[list[int]]:
    """The rows of each lesion or patient; an image of none is a unit of its own."""
    units: dict[str | int, list[int]] = {}
    for row, group in enumerate(groups):
        units.setdefault(group or row, []).append(row)
    return list(units.values())


def _ranking(order: Sequence[str], names: Sequence[str], available: Integers) -> Integers:
    if not order:
        return np.argsort(-available, kind="stable")
    _refuse_unknown("order", order, names)
    if absent := [name for name in names if name not in order]:
        raise ConfigError(
            f"long_tail.order does not name {', '.join(map(repr, absent))}; it must name all "
            f"{len(names)} classes, or be left out"
        )
    return np.array([names.index(name) for name in order], np.int64)


def _given_counts(counts: dict[str, int], names: Sequence[str], available: Integers) -> Integers:
    _refuse_unknown("counts", counts, names)
    wanted = available.copy()
    for name, count in counts.items():
        wanted[names.index(name)] = count
    asked = zip(names, wanted.tolist(), available.tolist(), strict=True)
    if much := [f"{name} ({want} of {have})" for name, want, have in asked if want > have]:
        raise ConfigError(
            f"long_tail.counts asks for more training images than there are: {', '.join(much)}; "
            "lower these numbers, or leave the class out to keep all its images"
        )
    if not wanted.any():
        raise ConfigError(
            "long_tail.counts leaves no training image of any class; ask for more than 0 of one"
        )
    return wanted


def _refuse_unknown(key: str, given: Sequence[str] | dict[str, int], names: Sequence[str]) -> None:
    unknown = [name for name in given if name not in names]
    if unknown:
        near = {name: difflib.get_close_matches(name, names, n=1) for name in unknown}
        said = [
            f"{name!r}" + (f" (did you mean {n[0]!r}?)" if n else "") for name, n in near.items()
        ]
        raise ConfigError(
            f"long_tail.{key} names classes that the data set does not have: {', '.join(said)}; "
            f"its classes are {', '.join(names)}"
        )
