"""Labelled images: the one form in which every data set reaches the rest of fedkd."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from fedkd.data.pixels import Integers as Integers
from fedkd.data.pixels import Pixels, Selection
from fedkd.errors import DataError

SPLITS: tuple[str, str, str] = ("train", "val", "test")
"""Names of the splits, which are the fields of :class:`Splits`."""


@dataclass(frozen=True)
class LabelledImages:
    """Images with their labels, and with the hospital and the name of each.

    Attributes:
        images: (num_images, channels, height, width), an array, or LazyPixels, which reads rows
            when they are needed. uint8 means pixels 0..255, which the models see divided by 255;
            float means values that reach the models exactly as they are.
        labels: Class indices, int64 (num_images,), 0 <= label < num_classes.
        class_names: One name per class; its length is the number of classes.
        sites: Index of the hospital of each image, int64 (num_images,); all 0 if unknown.
        site_names: One name per hospital.
        ids: Name of each image, unique within a split; empty means row numbers are used.
        groups: Name of the lesion or patient that each image shows, the same in every split; "" is
            an image of no known group, and empty means that no group is known.
    """

    images: Pixels
    labels: Integers
    class_names: tuple[str, ...]
    sites: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    site_names: tuple[str, ...] = ("all",)
    ids: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Fill in defaults and refuse what does not fit together (DataError)."""
        num = len(self.images)
        if self.images.ndim != 4:
            raise DataError(
                f"images have shape {self.images.shape}; expected "
                "(num_images, channels, height, width)"
            )
        if self.images.dtype not in (np.uint8, np.float32, np.float64):
            raise DataError(
                f"images have dtype {self.images.dtype}; allowed are uint8 (pixels 0..255), "
                "float32 and float64 (values used as they are)"
            )
        if len(self.sites) == 0 and num:
            object.__setattr__(self, "sites", np.zeros(num, np.int64))
        if not self.ids:
            object.__setattr__(self, "ids", tuple(str(row) for row in range(num)))
        if not self.groups:
            object.__setattr__(self, "groups", ("",) * num)
        object.__setattr__(self, "class_names", tuple(self.class_names))
        object.__setattr__(self, "site_names", tuple(self.site_names))
        for name in ("labels", "sites"):
            values = np.asarray(getattr(self, name))
            if values.size and not np.issubdtype(values.dtype, np.integer):
                raise DataError(f"{name} have dtype {values.dtype}; they must be integers")
            object.__setattr__(self, name, values.astype(np.int64))
        for name in ("labels", "sites", "ids", "groups"):
            if len(getattr(self, name)) != num:
                raise DataError(
                    f"{len(getattr(self, name))} {name} for {num} images; need one each"
                )
        for name, names in (("labels", self.class_names), ("sites", self.site_names)):
            values = getattr(self, name)
            bad = np.flatnonzero((values < 0) | (values >= len(names)))
            if len(bad):
                raise DataError(
                    f"{len(bad)} {name} are outside 0..{len(names) - 1}, the first is "
                    f"{values[bad[0]]} at row {bad[0]} (image {self.ids[bad[0]]})"
                )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """Number of classes, those without an image included."""
        return len(self.class_names)

    def class_counts(self) -> Integers:
        """Images per class, int64 (num_classes,); 0 for an absent class."""
        return np.bincount(self.labels, minlength=self.num_classes).astype(np.int64)

    @property
    def shown(self) -> tuple[str, ...]:
        """What each image shows: its group, or itself where none is known."""
        return tuple(
            f"group {name}" if name else f"image {row}" for row, name in enumerate(self.groups)
        )

    def subset(self, indices: Sequence[int] | Integers) -> "LabelledImages":
        """The images at ``indices``, in that order; the pixels are shared, not copied.

        Negative numbers count from the end, and a mask is one, as in NumPy.
        """
        rows = np.arange(len(self))[list(indices)]
        return LabelledImages(
            images=Selection(self.images, rows),
            labels=self.labels[rows],
            class_names=self.class_names,
            sites=self.sites[rows],
            site_names=self.site_names,
            ids=tuple(self.ids[row] for row in rows),
            groups=tuple(self.groups[row] for row in rows),
        )


class GroupBounds(NamedTuple):
    """Published bounds of head, medium and tail: numbers of images of a class, all splits together.

    Attributes:
        tail_below: A class with fewer images is tail.
        head_above: A class with more images is head; the others are medium.
    """

    tail_below: int
    head_above: int


@dataclass(frozen=True)
class Splits:
    """Train, val and test of one data set; they share class names and site names.

    Selection looks at ``val``; ``test`` is evaluated once, at the end. ``bounds`` says which
    classes are head and tail where that is published; None makes thirds by training count.
    """

    train: LabelledImages
    val: LabelledImages
    test: LabelledImages
    bounds: GroupBounds | None = None
