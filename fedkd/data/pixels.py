"""Pixels of many images: in an array (in memory or mapped from a file), or read when needed."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from itertools import tee
from typing import Any

import numpy as np
import numpy.typing as npt

from fedkd.errors import DataError

Integers = npt.NDArray[np.int64]
Array = npt.NDArray[Any]


class LazyPixels(ABC):
    """Stands for an array (num_images, channels, height, width) whose rows are read when needed.

    NumPy's functions take it as well, by reading all of it.

    Args:
        shape: Of the array.
        dtype: Of the array.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape = shape
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.ndim = len(shape)

    @abstractmethod
    def batches(self, plan: Iterable[Integers]) -> Generator[Array, None, None]:
        """The rows of each batch, one batch after the other, each read only when its turn is near.

        Whoever does not read to the end closes the generator, which then lets go of its threads.
        """

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Array:
        """As of an array, on the first axis: a number, a slice, numbers or a mask."""
        numbers = np.arange(len(self))[rows]
        (pixels,) = self.batches([np.atleast_1d(numbers)])
        return pixels if numbers.ndim else pixels[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self[:].astype(dtype or self.dtype, copy=False)


Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float32] | npt.NDArray[np.float64] | LazyPixels


class Selection(LazyPixels):
    """Rows of other pixels, of which nothing is copied until they are read.

    Args:
        pixels: An array or lazy pixels.
        rows: Which of its rows, int64 (num_images,), in the order that this has them.
    """

    def __init__(self, pixels: Pixels, rows: Integers) -> None:
        super().__init__((len(rows), *pixels.shape[1:]), pixels.dtype)
        self.pixels, self.rows = pixels, rows
        if isinstance(pixels, Selection):
            self.pixels, self.rows = pixels.pixels, pixels.rows[rows]

    def batches(self, plan: Iterable[Integers]) -> Generator[Array, None, None]:
        """The rows of each batch."""
        return read_batches(self.pixels, (self.rows[rows] for rows in plan))


class Joined(LazyPixels):
    """Several pixels one after the other as one, of which nothing is copied until it is read.

    Args:
        parts: At least one, all with images of one shape and dtype.
    """

    def __init__(self, parts: Sequence[Pixels]) -> None:
        first = parts[0]
        assert all((p.shape[1:], p.dtype) == (first.shape[1:], first.dtype) for p in parts)
        super().__init__((sum(map(len, parts)), *first.shape[1:]), first.dtype)
        self.parts = parts
        self._starts = np.cumsum([0, *map(len, parts)])

    def batches(self, plan: Iterable[Integers]) -> Generator[Array, None, None]:
        """The rows of each batch."""
        plans = tee(plan, len(self.parts) + 1)
        with ExitStack() as stack:
            read = [
                stack.enter_context(closing(read_batches(part, self._within(number, own))))
                for number, (part, own) in enumerate(zip(self.parts, plans[1:], strict=True))
            ]
            for rows, *found in zip(plans[0], *read, strict=True):
                pixels = np.empty((len(rows), *self.shape[1:]), self.dtype)
                owner = self._owner(rows)
                for number, images in enumerate(found):
                    pixels[owner == number] = images
                yield pixels

    def _owner(self, rows: Integers) -> Integers:
        return np.searchsorted(self._starts, rows, side="right") - 1

    def _within(self, number: int, plan: Iterable[Integers]) -> Generator[Integers, None, None]:
        """Rows of one part, in each batch; often none."""
        for rows in plan:
            yield rows[self._owner(rows) == number] - self._starts[number]


class AtHospitals(LazyPixels):
    """Stands for training images that are on the disks of hospitals, and nowhere here.

    Args:
        shape: (num_images, channels, height, width) of all hospitals together; uint8.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape, np.uint8)

    def batches(self, plan: Iterable[Integers]) -> Generator[Array, None, None]:
        """Refuse (DataError)."""
        raise DataError(
            f"the {len(self)} training images are at the hospitals, which say only how many they "
            "have of each class; what needs the images themselves can be done at a hospital, or "
            "in a simulation"
        )


def read_batches(pixels: Pixels, plan: Iterable[Integers]) -> Generator[Array, None, None]:
    """Copies of the rows of each batch, one batch after the other; to be closed by the caller."""
    if isinstance(pixels, LazyPixels):
        return pixels.batches(plan)
    return (pixels[rows] for rows in plan)
