"""Arrays of messages, read without copying and serialised only when they travel."""

import io
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord
from torch import Tensor

SERIALISATION = "numpy.ndarray"
"""Flower's name of the one way in which it serialises arrays."""


class HeldArray(Array):
    """An array that is serialised only when it must travel.

    Flower's own arrays are bytes, copied at each reading. In one process the server's arrays are
    read once by every client, and the clients' arrays twice by the server.

    Args:
        values: What it holds; readers share it and must not write to it.
    """

    # Flower writes the class's name before the bytes, and the receiver reads an Array.
    __qualname__ = "Array"

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self.__dict__.update(
            dtype=str(values.dtype), shape=values.shape, stype=SERIALISATION, values=values
        )

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The bytes that Flower sends."""
        return Array(self.numpy()).data

    def numpy(self) -> npt.NDArray[Any]:
        """The array."""
        return cast(npt.NDArray[Any], self.__dict__["values"])


class HeldRecord(ArrayRecord):
    """Arrays that stay what they are, and are read without collecting garbage each time.

    Flower's own record serialises whatever it is made of. It collects garbage for each reply, when
    it is emptied while it is read: a good second in a process with torch, and there is nothing to
    free here.

    Args:
        arrays: By name.
    """

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        super().__init__()
        for name, array in arrays.items():
            self[name] = array

    def to_numpy_ndarrays(self, *, keep_input: bool = True) -> list[npt.NDArray[Any]]:
        """The arrays, in order; they stay, whatever is asked for."""
        return [array.numpy() for array in self.values()]


def hold(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """A record over the tensors' own memory, which is the CPU's: nothing is serialised."""
    return HeldRecord({name: HeldArray(tensor.numpy()) for name, tensor in tensors.items()})


def view(array: Array) -> npt.NDArray[Any]:
    """The array in a message, read-only where it has travelled; reading it copies nothing."""
    if isinstance(array, HeldArray):
        return array.numpy()
    file = io.BytesIO(array.data)
    if np.lib.format.read_magic(file) != (1, 0):
        return array.numpy()
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    flat = np.frombuffer(array.data, dtype, offset=file.tell())
    return flat.reshape(shape, order="F" if fortran_order else "C")
