"""Data sets on disk, ready to use: what took seconds to draw or decode is mapped into memory.

A store is a folder: ``pixels.npy``, the images of train, val and test one after the other, mapped
read-only, so that clients, processes and later runs share the same pages; and ``rows.npz``, all
else. It appears under its name whole or not at all. While it is built a lock lies beside it: others
wait for the store and read it, and what a killed build left behind is recognised and removed.

A store may be deleted at any time. One that does not fit is made again, and one that cannot be
written costs only time and memory; both are said in the log. Damage is looked for at every start:
in the header, the lengths and the check sums of ``rows.npz``, and in the size and time of
``pixels.npy``; only if these are not those of the day it was written is its SHA-256 computed (our
choice: half a second per GB). Bits that a disk loses without a write go unnoticed.
"""

import hashlib
import logging
import os
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from fedkd import files, paths
from fedkd.data.images import SPLITS, LabelledImages, Splits
from fedkd.data.pixels import Array
from fedkd.errors import DataError
from fedkd.fetching import hash_file

logger = logging.getLogger(__name__)

Allocate = Callable[[tuple[int, ...]], npt.NDArray[np.uint8]]
"""Shape of the pixels of train, val and test together -> the array to be filled with them."""

_FORMAT = 3
_PIXELS, _ROWS = "pixels.npy", "rows.npz"


def load_or_build(
    name: str, key: str, build: Callable[[], Splits], cache_dir: Path | None = None
) -> Splits:
    """The stored splits, or else what ``build`` returns, which is then stored.

    Args:
        name: Of the data set; starts the store's name.
        key: Text that holds everything the splits depend on; equal keys mean equal splits.
        build: Makes the splits, all of one image size; its errors pass through.
        cache_dir: Folder of the stores; by default :func:`fedkd.paths.cache_dir`.
    """
    return load_or_fill(name, key, lambda _: build(), cache_dir)


def load_or_fill(
    name: str, key: str, build: Callable[[Allocate], Splits], cache_dir: Path | None = None
) -> Splits:
    """As :func:`load_or_build`, for pixels that need not be in memory all at once.

    Args:
        name: Of the data set; starts the store's name.
        key: Text that holds everything the splits depend on; equal keys mean equal splits.
        build: Gets a function that makes the array of all pixels, a part of the store if it can be
            written, and returns splits whose images are train, val and test in it, in this order.
            Other images are copied into the store.
        cache_dir: Folder of the stores; by default :func:`fedkd.paths.cache_dir`.
    """
    folder = paths.cache_dir() if cache_dir is None else cache_dir
    digest = hashlib.sha256(f"format {_FORMAT} {key}".encode()).hexdigest()
    path = folder / f"{name}-{digest[:32]}"
    try:
        return _open(path)
    except _Unusable:
        pass  # Said, and made again, only by the one process that gets the lock.
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = files.lock(path.with_name(f".{path.name}.lock"), f"is building {path}")
    except OSError as error:
        _warn(folder, error)
        return build(lambda shape: np.empty(shape, np.uint8))
    try:
        return _open(path)
    except _Unusable as error:
        if os.path.lexists(path):
            logger.warning("the cached data set %s is damaged (%s); making it again", path, error)
            _remove(path)
        _remove_leftovers(folder)
        return _build(path, build)
    finally:
        lock.release()


class _Unusable(Exception):
    """There is no store, or it is damaged."""


def _open(path: Path) -> Splits:
    """The splits of a store."""
    try:
        with np.load(path / _ROWS, allow_pickle=False) as file:
            rows = {name: file[name] for name in file.files}
        _check_pixels(path / _PIXELS, rows)
        return _unpack(np.lib.format.open_memmap(path / _PIXELS, mode="r"), rows)
    # What a damaged zip or array header raises is not documented: a broken flag byte, for one,
    # reads as encryption (RuntimeError) or as an unknown compression (NotImplementedError).
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        AttributeError,
        MemoryError,
        SyntaxError,
        OverflowError,
        zipfile.BadZipFile,
        DataError,
    ) as error:
        raise _Unusable(str(error)) from error


def _check_pixels(file: Path, rows: dict[str, Array]) -> None:
    if _stamp(file) != rows["pixels_stamp"].tolist() and hash_file(file) != rows["pixels_sha256"]:
        raise DataError(f"{file.name} has not the check sum that it was written with")


def _stamp(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _remove_leftovers(folder: Path) -> None:
    """What killed builds left: parts whose lock nobody holds."""
    for part in folder.glob(".*.part"):
        lock = FileLock(part.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except OSError:  # Timeout is one: it is being built.
            continue
        _remove(part)
        lock.release()


def _remove(path: Path) -> None:
    """Best effort: what stays makes the write that follows fail, which is said."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _build(path: Path, build: Callable[[Allocate], Splits]) -> Splits:
    """Build a store whose lock is held."""
    draft = _Draft(path.with_name(f".{path.name}.part"))
    _remove(draft.folder)
    try:
        splits = build(draft.allocate)
        try:
            draft.finish(splits)
            draft.folder.rename(path)
            return _open(path)
        except (OSError, _Unusable) as error:
            _warn(path.parent, error)
            return splits
    finally:
        _remove(draft.folder)


class _Draft:
    """A store that is being written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pixels: Array = np.empty(0)

    def allocate(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Pixels in the store, or in memory if there is no room; ``finish`` then says so."""
        try:
            return self._create(shape, np.dtype(np.uint8))
        except OSError:
            return np.empty(shape, np.uint8)

    def finish(self, splits: Splits) -> None:
        """Write all that is not there yet; OSError if it cannot be written."""
        parts: list[LabelledImages] = [getattr(splits, name) for name in SPLITS]
        first = parts[0].images
        shape = (sum(map(len, parts)), *first.shape[1:])
        if (self._pixels.shape, self._pixels.dtype) != (shape, first.dtype):
            self._create(shape, first.dtype)
        end = 0
        for part in parts:
            place = self._pixels[end : end + len(part)]
            end += len(part)
            if not (
                isinstance(part.images, np.ndarray) and np.may_share_memory(place, part.images)
            ):
                place[:] = part.images
        file = self.folder / _PIXELS
        self._pixels.flush()  # type: ignore[attr-defined]
        rows = _pack(splits)
        rows["pixels_sha256"] = np.array(hash_file(file))
        rows["pixels_stamp"] = np.array(_stamp(file))
        np.savez(self.folder / _ROWS, allow_pickle=False, **rows)

    def _create(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        self.folder.mkdir(exist_ok=True)
        file = self.folder / _PIXELS
        pixels = np.lib.format.open_memmap(file, "w+", dtype, shape)
        # Writing to a mapped file on a full disk kills the process: claim the room before.
        if hasattr(os, "posix_fallocate"):
            with file.open("r+b") as opened:
                os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        self._pixels = pixels
        return pixels


def _warn(folder: Path, error: Exception) -> None:
    logger.warning(
        "cannot cache the data set in %s (%s); the next start takes as long as this one. "
        "Make room there, or set FEDKD_CACHE to another folder that can be written",
        folder,
        error,
    )


def _pack(splits: Splits) -> dict[str, Array]:
    arrays: dict[str, Array] = {
        "class_names": np.array(splits.train.class_names),
        "site_names": np.array(splits.train.site_names),
    }
    for name in SPLITS:
        split: LabelledImages = getattr(splits, name)
        for part in ("labels", "sites"):
            arrays[f"{name}_{part}"] = getattr(split, part)
        arrays[f"{name}_ids"] = np.array(split.ids)
        arrays[f"{name}_groups"] = np.array(split.groups)
    return arrays


def _unpack(pixels: Array, arrays: dict[str, Array]) -> Splits:
    splits, end = {}, 0
    for name in SPLITS:
        labels = arrays[f"{name}_labels"]
        splits[name] = LabelledImages(
            images=pixels[end : end + len(labels)],
            labels=labels,
            class_names=tuple(arrays["class_names"].tolist()),
            sites=arrays[f"{name}_sites"],
            site_names=tuple(arrays["site_names"].tolist()),
            ids=tuple(arrays[f"{name}_ids"].tolist()),
            groups=tuple(arrays[f"{name}_groups"].tolist()),
        )
        end += len(labels)
    if end != len(pixels):
        raise DataError(f"{len(pixels)} images for {end} labels")
    return Splits(splits["train"], splits["val"], splits["test"])
