"""Objects as arrays of bytes that processes of a machine can share.

Ray keeps arrays in shared memory and gives them out without a copy, but copies torch's tensors, and
reads mapped files into its memory. Here tensors are arrays, a GPU's tensors travel through the CPU
to the receiver's own GPU, and mapped files are named by their paths.
"""

import io
import mmap
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from ray import cloudpickle
from torch import Tensor

from fedkd.teachers.sharing import open_tensor

Bytes = npt.NDArray[np.uint8]
Stamp = tuple[int, int]
"""Size in bytes and time of the last change in ns of a file."""
Places = Mapping[int, tuple[Path, int]]
"""File and first byte of tensors that are views of files, by ``data_ptr()``."""


class Package(NamedTuple):
    """An object as bytes.

    Attributes:
        pieces: What :func:`unpack` takes, uint8 (any,) each; views of the object's own memory where
            that is on the CPU.
        files: Files that the receiver must have, because pieces only name them.
    """

    pieces: list[Bytes]
    files: dict[str, Stamp]


def pack(obj: Any, places: Places | None = None, *, by_path: bool = False) -> Package:
    """The bytes of anything that can be pickled; tensors keep their bits, sizes and strides.

    Args:
        obj: Classes and functions that other processes can import are named, others are packed.
        places: Tensors to be opened from files; those of ``fedkd.teachers.sharing``.
        by_path: Name mapped files, images and ``places``, instead of packing their bytes.
    """
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    packer = _Packer(file, buffers, places or {}, by_path)
    packer.dump(obj)  # type: ignore[no-untyped-call]
    return Package(
        [_bytes(file.getbuffer()), *(_bytes(one.raw()) for one in buffers)], packer.files
    )


def unpack(pieces: Sequence[Bytes]) -> Any:
    """The object; its arrays and tensors are views of the pieces, and must not be written to."""
    return pickle.loads(pieces[0].data, buffers=pieces[1:])


def stamp(path: Path) -> Stamp:
    """What a file is recognised by."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def sees(files: Mapping[str, Stamp]) -> bool:
    """Whether this process finds these very files."""
    try:
        return all(stamp(Path(path)) == expected for path, expected in files.items())
    except OSError:
        return False


def _bytes(buffer: memoryview) -> Bytes:
    return np.frombuffer(buffer, np.uint8) if buffer.nbytes else np.empty(0, np.uint8)


class _Packer(cloudpickle.CloudPickler):
    def __init__(
        self,
        file: io.BytesIO,
        buffers: list[pickle.PickleBuffer],
        places: Places,
        by_path: bool,
    ) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            file, protocol=5, buffer_callback=buffers.append
        )
        self._places, self._by_path = places, by_path
        self.files: dict[str, Stamp] = {}

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.device) and obj.type == "cuda":
            return torch.device, ("cuda", 0)
        if type(obj) is Tensor and obj.layout is torch.strided and not obj.is_quantized:
            return self._tensor(obj)
        if isinstance(obj, np.ndarray):
            if self._by_path and (place := _mapped(obj)):
                path, offset = place
                self.files[str(path)] = stamp(path)
                return _open_array, (path, obj.dtype, offset, obj.shape)
            if isinstance(obj, np.memmap):
                return np.asarray(obj).__reduce_ex__(5)
        return super().reducer_override(obj)  # type: ignore[no-untyped-call]

    def _tensor(self, tensor: Tensor) -> Any:
        stride = torch.empty_like(tensor, device="meta").stride()
        if self._by_path and (place := self._places.get(tensor.data_ptr())):
            path, offset = place
            self.files[str(path)] = stamp(path)
            return open_tensor, (path, offset, tensor.dtype, tensor.size(), stride)
        dense = tensor.detach().resolve_conj().resolve_neg().cpu()
        if dense.stride() != stride:
            dense = dense.clone()
        flat = dense.as_strided((dense.numel(),), (1,)).view(torch.uint8).numpy()
        about = (tensor.size(), dense.stride(), tensor.dtype, tensor.requires_grad)
        return _make_tensor, (flat, *about, tensor.is_cuda)


def _make_tensor(
    flat: Bytes,
    size: torch.Size,
    stride: tuple[int, ...],
    dtype: torch.dtype,
    requires_grad: bool,
    on_gpu: bool,
) -> Tensor:
    if not size.numel():
        tensor = torch.empty(size, dtype=dtype)
    else:
        tensor = torch.frombuffer(flat, dtype=dtype).as_strided(size, stride)
    return tensor.to("cuda:0" if on_gpu else "cpu").requires_grad_(requires_grad)


def _mapped(array: npt.NDArray[Any]) -> tuple[Path, int] | None:
    """File and first byte of an array that is a view of a file mapped for reading."""
    root: Any = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    read_only = (
        isinstance(root, np.memmap) and isinstance(root.base, mmap.mmap) and root.mode == "r"
    )
    if not (read_only and root.filename and array.flags.c_contiguous and array.size):
        return None
    first = array.__array_interface__["data"][0] - root.__array_interface__["data"][0]
    return Path(root.filename).resolve(), root.offset + first


def _open_array(
    path: Path, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    return np.memmap(path, dtype, "r", offset, shape)
