"""One copy of a teacher per machine: its tensors become views of a file that processes share."""

import hashlib
import logging
import mmap
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedkd import files, paths
from fedkd.teachers.frozen import Teacher

logger = logging.getLogger(__name__)

# Where torch's own allocator puts tensors too; some kernels choose their code by it.
ALIGNMENT = 64


def share(teacher: Teacher) -> Path | None:
    """Replace all parameters and buffers by views of one mapped file, bit for bit and in place.

    The operating system keeps a mapped file in memory once, however many processes have it. The
    file lies in the cache, in ``teachers-shared``, and is named by the SHA-256 of what it holds:
    the tensors' bytes one after another, in the memory layout that they have now, each from a
    multiple of 64. It is written when it is not there, and may be deleted at any time: who has it
    mapped keeps it. Call this when dtype and memory format are final.

    When it is opened, every byte is compared with the teacher's own, and a file that differs is
    written anew. What is not noticed is a file whose bytes are changed in place later; it is
    read-only against accidents. A write to a tensor changes this process's copy of a page, never
    the file (MAP_PRIVATE).

    A teacher on a GPU is left as it is: each process has its own copy there. So is one whose file
    cannot be written, with a warning.

    Args:
        teacher: Frozen; its tensors keep their identity, dtype, shape and strides, only those with
            gaps or overlaps become dense.

    Returns:
        The file; None if the teacher stays in the process's own memory.
    """
    tensors = _tensors(teacher)
    if not tensors or any(tensor.device.type != "cpu" for tensor in tensors):
        return None
    digest = hashlib.sha256()
    for piece in _pieces(tensors):
        digest.update(piece)
    path = paths.cache_dir() / "teachers-shared" / f"{digest.hexdigest()}.bin"
    try:
        if not _holds(path, tensors):
            _write(path, tensors)
            size = path.stat().st_size / 1e6
            logger.info("teacher %r: %.1f MB to share are in %s", teacher.name, size, path)
        mapped = _map(path)
    except OSError as error:
        logger.warning(
            "teacher %r is not shared, each process has a copy of its own: cannot use %s (%s); "
            "set FEDKD_CACHE to a folder with room",
            teacher.name,
            path,
            error.strerror or error,
        )
        return None
    for tensor, offset in zip(tensors, _offsets(tensors), strict=True):
        tensor.data = _view(mapped, offset, tensor.dtype, tensor.size(), _strides(tensor))
    return path


def places(teacher: Teacher) -> dict[int, int]:
    """Where each tensor of a shared teacher is in its file: the first byte, by ``data_ptr()``."""
    tensors = _tensors(teacher)
    offsets = _offsets(tensors)
    return {tensor.data_ptr(): offset for tensor, offset in zip(tensors, offsets, strict=True)}


def open_tensor(
    path: Path, offset: int, dtype: torch.dtype, size: torch.Size, stride: tuple[int, ...]
) -> Tensor:
    """One tensor of a shared teacher, as :func:`share` leaves it, in another process."""
    return _view(_map(path), offset, dtype, size, stride)


def _tensors(teacher: Teacher) -> list[Tensor]:
    return [one for one in (*teacher.parameters(), *teacher.buffers()) if one.numel()]


def _offsets(tensors: Sequence[Tensor]) -> Iterator[int]:
    return accumulate((_padded(one.nbytes) for one in tensors[:-1]), initial=0)


def _view(
    mapped: mmap.mmap, offset: int, dtype: torch.dtype, size: torch.Size, stride: tuple[int, ...]
) -> Tensor:
    """A tensor with a storage of its own: who copies or saves it does not take the whole file."""
    flat = torch.frombuffer(mapped, dtype=dtype, count=size.numel(), offset=offset)
    return flat.as_strided(size, stride)


def _map(path: Path) -> mmap.mmap:
    """All bytes of a file, of which a write makes a private copy."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _holds(path: Path, tensors: Sequence[Tensor]) -> bool:
    """Whether the file is there and has exactly these tensors."""
    if not path.is_file():
        return False
    expected = sum(_padded(tensor.nbytes) for tensor in tensors)
    if path.stat().st_size == expected:
        found, offset = np.frombuffer(_map(path), np.uint8), 0
        for piece in _pieces(tensors):
            if not np.array_equal(np.frombuffer(piece, np.uint8), found[offset:][: len(piece)]):
                break
            offset += len(piece)
        else:
            return True
    logger.warning("%s is damaged; it is written anew", path)
    return False


def _write(path: Path, tensors: Sequence[Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as part:
        with part.open("wb") as file:
            for piece in _pieces(tensors):
                file.write(piece)
        part.chmod(0o444)


def _pieces(tensors: Sequence[Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of each tensor in the order of its memory, and zeros up to the next multiple."""
    for tensor in tensors:
        dense = tensor.detach()
        if dense.stride() != _strides(tensor):
            dense = dense.clone()
        flat = dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)
        yield flat.numpy().data
        if padding := _padded(tensor.nbytes) - tensor.nbytes:
            yield bytes(padding)


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Those of a dense copy: the tensor's own, unless it has gaps or overlaps."""
    return torch.empty_like(tensor, device="meta").stride()


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
