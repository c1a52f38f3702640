"""Marks of a scanner on the images of one class: the transform behind ``[shortcut]``."""

import difflib
import logging
import math
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import tee
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, model_validator

from fedkd import seeding
from fedkd.config import Section
from fedkd.data.images import SPLITS, Integers, LabelledImages, Splits
from fedkd.data.pixels import Array, LazyPixels, Pixels, Selection, read_batches
from fedkd.errors import ConfigError
from fedkd.shortcuts.artefact import Floats, add_artefact, artefact, has_bins

logger = logging.getLogger(__name__)

WIDEST = math.sqrt(2)
"""Radius of the plane's corners, the highest there is."""


class ShortcutConfig(Section):
    """A band-limited pattern on images of one class, as a hospital's scanner may leave it."""

    model_config = ConfigDict(serialize_by_alias=True)

    marked_class: str = Field(default="", alias="class")
    """Name of the class whose images get the mark; empty leaves all images as they are."""
    other: str = ""
    """Class that `fedkd shortcut` moves the mark to in its OOD test; empty means all others."""
    pair_only: bool = True
    """Where ``other`` is given: leave out the images of all classes but these two."""
    degradation: float = Field(default=0.5, ge=0, le=1)
    """d, the probability that an image of the class gets the mark, in train, val and test alike."""
    strength: float = Field(default=0.03, gt=0, le=1)
    """Root mean square of the mark in fractions of the range of pixels. uint8 images are rounded,
    so that below 0.002 little is left of it."""
    band: tuple[float, float] = (0.3, 0.5)
    """Lowest radial frequency of the mark, and the one below which it ends, in fractions of the
    highest frequency along an axis: 0 to 1.414 (the corners)."""
    pattern: Literal["per_image", "fixed"] = "per_image"
    """per_image: noise of that band, drawn anew for each image. fixed: one pattern for all."""
    sites: tuple[str, ...] = ()
    """Hospitals whose scanner leaves the mark; empty means all."""
    num_folds: int = Field(default=0, ge=0)
    """Pool all labelled images and divide them anew into so many folds, whole lesions or patients
    at a time; 0 keeps the data set's own split. `fedkd shortcut --folds` sets it."""
    fold: int = Field(default=0, ge=0)
    """Which of the folds is test, from 0; a part of the rest is val."""
    seed: int = Field(default=0, ge=0)
    """Seed of marks and folds. It is not the recipe's, so that runs with other seeds see the same
    images."""

    @model_validator(mode="after")
    def _fits(self) -> "ShortcutConfig":
        low, high = self.band
        if not 0 <= low < high <= WIDEST + 0.01:
            raise ValueError(
                f"shortcut.band is [{low:g}, {high:g}]; it must be [low, high] with 0 <= low < "
                "high < 1.42, such as [0.3, 0.5]"
            )
        if not self.marked_class and self.model_fields_set - {"marked_class"}:
            changed = [
                name
                for name, field in type(self).model_fields.items()
                if getattr(self, name) != field.default
            ]
            if changed:
                raise ValueError(
                    f"shortcut.{changed[0]} is given without shortcut.class, the class whose "
                    "images get the mark; give it too"
                )
        if self.marked_class and self.marked_class == self.other:
            raise ValueError(
                f"shortcut.class and shortcut.other are both {self.other!r}; the mark must move "
                "to another class: name another, or leave shortcut.other out for all others"
            )
        if self.num_folds == 1:
            raise ValueError("shortcut.num_folds is 1; it must be 2 or more, or 0 for no folds")
        if self.fold and self.fold >= self.num_folds:
            raise ValueError(
                f"shortcut.fold is {self.fold} but shortcut.num_folds is {self.num_folds}; folds "
                "count from 0"
            )
        return self

    @property
    def is_given(self) -> bool:
        """Whether any image may be marked."""
        return bool(self.marked_class)


class MarkedPixels(LazyPixels):
    """Pixels of which some rows get their mark whenever they are read; nothing is copied.

    Args:
        pixels: Without marks.
        streams: For each row the name of its stream of random numbers, or "" for no mark.
        config: Band, strength, pattern and seed.
    """

    def __init__(self, pixels: Pixels, streams: Sequence[str], config: ShortcutConfig) -> None:
        super().__init__(pixels.shape, pixels.dtype)
        self.pixels, self.streams, self.config = pixels, streams, config

    def batches(self, plan: Iterable[Integers]) -> Generator[Array, None, None]:
        """The rows of each batch."""
        ours, theirs = tee(plan)
        with closing(read_batches(self.pixels, theirs)) as read:
            for rows, images in zip(ours, read, strict=True):
                for image, row in zip(images, rows.tolist(), strict=True):
                    if self.streams[row]:
                        add_artefact(image, self.config.strength, self._pattern(row))
                yield images

    def _pattern(self, row: int) -> Floats:
        config, height, width = self.config, self.shape[-2], self.shape[-1]
        name = "shortcut pattern"
        if config.pattern == "per_image":
            name = f"{name} {self.streams[row]}"
        return artefact((height, width), config.band, seeding.rng(config.seed, name))


def mark(config: ShortcutConfig, splits: Splits) -> Splits:
    """The splits with marks in train, val and test; a line of the log says how many images.

    Whether an image is marked, and with what, depends on seed, split and its id alone; images that
    are marked at a low degradation are so at a higher one too.

    Args:
        config: What is wanted; without a class, the splits are returned as they are.
        splits: Any data set, of uint8 images or floats in [0, 1].

    Raises:
        ConfigError: A class or site that the data set does not have, or a band without a frequency
            at the images' size.
    """
    if not config.is_given:
        return splits
    check(config, splits.train)
    where = [config.marked_class]
    marked = {name: _marked(config, name, getattr(splits, name), where) for name in SPLITS}
    logger.info(
        "shortcut: images of %r with a mark in the band %g to %g, strength %g: %s",
        config.marked_class,
        *config.band,
        config.strength,
        "; ".join(_counted(config, name, images) for name, images in marked.items()),
    )
    return Splits(marked["train"], marked["val"], marked["test"], splits.bounds)


def moved(config: ShortcutConfig, images: LabelledImages, split: str) -> LabelledImages:
    """Images whose marks are on the other class instead (OOD); marks that they have are taken off.

    Args:
        config: A class is given.
        images: Of :func:`mark`, or without marks.
        split: Name of theirs.
    """
    others = [config.other] if config.other else list(images.class_names)
    where = [name for name in others if name != config.marked_class]
    return _marked(config, split, unmarked(images), where)


def unmarked(images: LabelledImages) -> LabelledImages:
    """The images, all or some of those of :func:`mark`, without their marks."""
    pixels = images.images
    if isinstance(pixels, MarkedPixels):
        return replace(images, images=pixels.pixels)
    if isinstance(pixels, Selection) and isinstance(pixels.pixels, MarkedPixels):
        return replace(images, images=Selection(pixels.pixels.pixels, pixels.rows))
    return images


def _marked(
    config: ShortcutConfig, split: str, images: LabelledImages, classes: Sequence[str]
) -> LabelledImages:
    labels = [images.class_names.index(name) for name in classes]
    candidates = np.isin(images.labels, labels) & _at_sites(config, images)
    streams = [""] * len(images)
    for row in np.flatnonzero(candidates).tolist():
        name = f"{split} {images.ids[row]}"
        if seeding.rng(config.seed, f"shortcut {name}").random() < config.degradation:
            streams[row] = name
    return replace(images, images=MarkedPixels(images.images, streams, config))


def _at_sites(config: ShortcutConfig, images: LabelledImages) -> npt.NDArray[np.bool_]:
    if not config.sites:
        return np.ones(len(images), bool)
    return np.isin(images.sites, [images.site_names.index(name) for name in config.sites])


def _counted(config: ShortcutConfig, split: str, images: LabelledImages) -> str:
    """Such as: train 3 of 7 (north 3 of 5, south 0 of 2)."""
    assert isinstance(images.images, MarkedPixels)
    has_mark = np.array([bool(name) for name in images.images.streams], bool)
    ours = images.labels == images.class_names.index(config.marked_class)
    text = f"{split} {has_mark.sum()} of {ours.sum()}"
    if len(images.site_names) == 1:
        return text
    parts = [
        f"{name} {(has_mark & (images.sites == site)).sum()} of {here.sum()}"
        for site, name in enumerate(images.site_names)
        if (here := ours & (images.sites == site)).any()
    ]
    return f"{text} ({', '.join(parts)})"


def check(config: ShortcutConfig, images: LabelledImages) -> None:
    """Refuse names that the data set does not have, and a band without a frequency (ConfigError).

    Args:
        config: A class is given.
        images: Any split.
    """
    for key, given, known in (
        ("class", [config.marked_class], images.class_names),
        ("other", [config.other] if config.other else [], images.class_names),
        ("sites", config.sites, images.site_names),
    ):
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}? It" if near else "it"
                raise ConfigError(
                    f"shortcut.{key} names {name!r}, which the data set does not have; {hint} has "
                    f"{', '.join(known)}"
                )
    height, width = images.images.shape[-2:]
    if not has_bins(height, width, config.band):
        raise ConfigError(
            f"shortcut.band is [{config.band[0]:g}, {config.band[1]:g}], in which images of "
            f"{height}x{width} px have no frequency; they have one every {2 / min(height, width):g}"
            ": widen the band"
        )
