"""Features of the training images, computed once and kept on disk, mapped into memory.

Features belong to an image: what another image, label or hospital is does not enter them, so that
one file serves all hospitals of a simulation that have the teacher. Held-out images have none.

A file appears under its name whole or not at all, and its name stands for everything that its
numbers depend on: the content of every image, the views, the teacher and the dtype. To know the
content, every image is read once at each start: about 0.8 s of CPU time per GB, and the decoding
where images are not kept decoded. A file may be deleted at any time. One of the wrong length or
shape is made again; bits that a disk loses without a write go unnoticed.
"""

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fedkd import files, paths, seeding
from fedkd.data.augment import Draws, dihedral_view, dihedral_views
from fedkd.data.images import Integers
from fedkd.data.loading import Loader, in_order
from fedkd.data.pixels import Array, read_batches
from fedkd.errors import DataError
from fedkd.models import states
from fedkd.teachers.config import OneTeacherConfig
from fedkd.teachers.frozen import Teacher

logger = logging.getLogger(__name__)

BATCH = 32
"""Images per forward pass, always: see :func:`features_of`."""
_FORMAT = 1
_REPORT_EVERY_S = 5.0
_Item = TypeVar("_Item")


class KeptFeatures:
    """The features of one client's images.

    Args:
        values: Of all images that were computed together, (num_images, num_views, D); view 0 is
            the image as it is.
        rows: Row of each of the client's images in ``values``, int64 (n,).
        square: Whether the images are.
    """

    def __init__(self, values: Array, rows: Integers, square: bool) -> None:
        self.values, self.rows, self._square = values, rows, square

    def of(self, positions: Integers, draws: Draws | None) -> Tensor:
        """Features (batch, D) of some images, on the CPU.

        Args:
            positions: Among the client's images, int64 (batch,).
            draws: Those that augment the images: each gets the features of its own flip and turn,
                if these were computed. None means images as they are.
        """
        if draws is None or self.values.shape[1] == 1:
            views = np.zeros(len(positions), np.int64)
        else:
            views = dihedral_views(draws, self._square)
        return torch.from_numpy(self.values[self.rows[positions], views])


def keep_features(
    teachers: Sequence[Teacher],
    configs: Sequence[OneTeacherConfig],
    loaders: Sequence[Loader],
    augmentation: str,
    cache_dir: Path | None = None,
) -> tuple[KeptFeatures | None, ...]:
    """The kept features of each client; None for clients whose ``views`` is ``"augmented"``.

    Args:
        teachers: Of each client, the same object where they share it.
        configs: Settings of these.
        loaders: Each client's images, all from one store.
        augmentation: Its name; the log says where kept features make it another method.
        cache_dir: By default :func:`fedkd.paths.cache_dir`.

    Raises:
        DataError: The cache cannot be written.
    """
    keys = [(id(t), c.views) for t, c in zip(teachers, configs, strict=True)]
    kept: list[KeptFeatures | None] = [None] * len(keys)
    # One after the other, so that an image is hashed once whatever the number of teachers.
    digests: dict[int, bytes] = {}
    for key in dict.fromkeys(keys):
        clients = [client for client, own in enumerate(keys) if own == key]
        config, first = configs[clients[0]], loaders[clients[0]]
        if config.views == "augmented":
            continue
        tell_another_method(config.views, augmentation)
        rows = np.unique(np.concatenate([loaders[client].indices for client in clients]))
        loader = Loader(first.data, rows, first.device, first.dtype, first.prefetch)
        missing = np.array([row for row in rows.tolist() if row not in digests], np.int64)
        digests.update(zip(missing.tolist(), _digests(first, missing), strict=True))
        square = first.data.images.shape[-1] == first.data.images.shape[-2]
        num_views = 1 if config.views == "clean" else 8 if square else 4
        values = _open(
            teachers[clients[0]],
            loader,
            num_views,
            hashlib.sha256(b"".join(digests[row] for row in rows.tolist())).hexdigest(),
            paths.cache_dir() if cache_dir is None else cache_dir,
        )
        for client in clients:
            kept[client] = KeptFeatures(
                values, np.searchsorted(rows, loaders[client].indices), square
            )
    return tuple(kept)


def tell_another_method(views: str, augmentation: str) -> None:
    """Log where features that are kept are not those of what the student sees."""
    if augmentation != ("dihedral" if views == "dihedral" else "none"):
        logger.info(
            "teacher.views = %r with augmentation.name = %r is another method than "
            "'augmented': the student sees changes of the image that its target does not have",
            views,
            augmentation,
        )


def features_of(
    teacher: Teacher, loader: Loader, num_views: int
) -> Iterator[tuple[slice, int, Array]]:
    """Features of images 0, 1, ... in each view: positions, number of the view, and (any, D).

    ``BATCH`` images at once, the last batch filled up with its last image: how torch's CPU kernels
    sum depends on the batch's size, not on the other images in it. The bits are therefore those of
    ``teacher.features`` on any batch of ``BATCH``; and, as measured (float32, 16 to 224 px, one and
    two threads, torch 2 on an x86 CPU with AVX-512), of any larger batch, of any batch from 2
    images on for the default teacher, and of any batch for a ViT. Smaller batches differ in the
    last bits for ResNet-50 and MobileNetV2. Of GPUs nothing is known.

    Args:
        teacher: Is asked.
        loader: The images.
        num_views: 1 (as they are), or all flips and turns: 8, or 4 for images that are not square.
    """
    plan = in_order(len(loader), BATCH)
    padded = [rows[np.minimum(np.arange(BATCH), len(rows) - 1)] for rows in plan]
    with closing(loader.batches(padded)) as loaded:
        for rows, (pixels, _) in zip(plan, loaded, strict=True):
            for number in range(num_views):
                features = teacher.features(dihedral_view(pixels, number)).to(pixels)
                yield slice(rows[0], rows[-1] + 1), number, features[: len(rows)].cpu().numpy()


def _open(teacher: Teacher, loader: Loader, num_views: int, content: str, cache_dir: Path) -> Array:
    """The stored features, computed if they are not there."""
    dtype = np.dtype(str(loader.dtype).removeprefix("torch."))
    shape = (len(loader), num_views, teacher.num_features)
    about = f"{shape} {dtype} {teacher.precision} {_identity(teacher, loader)}"
    key = f"format {_FORMAT} {content} {about}"
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
    path = cache_dir / "features" / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = files.lock(path.with_suffix(".lock"), f"is computing the features {path}")
        try:
            if path.exists():
                try:
                    return _read(path, shape, dtype)
                except (OSError, ValueError, EOFError) as error:
                    logger.warning("%s is damaged (%s); making it again", path, error)
            _write(path, teacher, loader, shape, dtype)
            return _read(path, shape, dtype)
        finally:
            lock.release()
    except OSError as error:
        raise DataError(
            f"cannot keep the teacher's features in {path.parent} ({error}); make room there "
            f"({np.prod(shape) * dtype.itemsize / 1e6:.0f} MB), set FEDKD_CACHE to another folder "
            "that can be written, or teacher.views to 'augmented'"
        ) from error


def _read(path: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    values: Array = np.lib.format.open_memmap(path, mode="r")
    if (values.shape, values.dtype) != (shape, dtype):
        raise ValueError(f"it has {values.dtype} {values.shape}, not {dtype} {shape}")
    return values


def _write(
    path: Path,
    teacher: Teacher,
    loader: Loader,
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
) -> None:
    """Under the lock, which makes the part our own, or what a killed process left behind."""
    part = path.with_suffix(".part")
    try:
        values = np.lib.format.open_memmap(part, "w+", dtype, shape)
        # Writing to a mapped file on a full disk kills the process: claim the room before.
        if hasattr(os, "posix_fallocate"):
            with part.open("r+b") as opened:
                os.posix_fallocate(opened.fileno(), 0, part.stat().st_size)
        text = f"features of teacher {teacher.name!r}, {shape[0]} images in {shape[1]} views"
        logger.info("computing %s ...", text)
        num_passes = -(-shape[0] // BATCH) * shape[1]
        computed = features_of(teacher, loader, shape[1])
        for rows, number, features in _told(computed, text, num_passes):
            values[rows, number] = features
        values.flush()
        del values
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _digests(loader: Loader, rows: Integers) -> list[bytes]:
    """SHA-256 of each image of the store: its dtype, shape and bytes."""
    images = loader.data.images
    head = f"{images.dtype} {images.shape[1:]}".encode()
    plan = [rows[positions] for positions in in_order(len(rows), BATCH)]
    found: list[bytes] = []
    with closing(read_batches(images, plan)) as read:
        for batch in _told(read, "check sums of the images", len(plan)):
            found += [hashlib.sha256(head + image.tobytes()).digest() for image in batch]
    return found


def _identity(teacher: Teacher, loader: Loader) -> str:
    """Text that differs for teachers that give other features.

    Weights and settings, and the features of one batch of noise: these also tell what else enters
    the numbers, such as the code of a module of the user's, torch's version, and the device.
    """
    rng = seeding.rng(0, "feature-probe")
    noise = torch.from_numpy(rng.random((BATCH, *loader.data.images.shape[1:])))
    probe = teacher.features(noise.to(loader.device, loader.dtype))
    settings = (teacher.mean.flatten().tolist(), teacher.std.flatten().tolist(), teacher.input_size)
    weights = states.sha256(teacher.backbone.state_dict())
    return f"{weights} {settings} {states.sha256({'probe': probe})}"


def _told(batches: Iterable[_Item], text: str, num_batches: int) -> Iterator[_Item]:
    """The same, with a line in the log every few seconds."""
    started = last = time.monotonic()
    for number, batch in enumerate(batches):
        now = time.monotonic()
        if now - last >= _REPORT_EVERY_S:
            last, done = now, (number + 1) / num_batches
            left = (now - started) * (1 / done - 1)
            logger.info("%s: %.0f %%, about %.0f s left", text, 100 * done, left)
        yield batch
