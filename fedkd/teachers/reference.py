"""The prior of a teacher without usable BatchNorm statistics, measured once on natural images.

The images are procedural, or come from a folder of the user's. Moments are kept in a file beside
the teachers' weights, named by the teacher and by a digest of all that decides about their bits.
"""

import hashlib
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fedkd import paths, seeding
from fedkd.data.dead_leaves import dead_leaves
from fedkd.data.image_files import decode_files
from fedkd.errors import DataError, TeacherError, first_of
from fedkd.fetching import hash_file
from fedkd.models import states
from fedkd.teachers.config import OneTeacherConfig
from fedkd.teachers.frozen import Teacher
from fedkd.teachers.moments_file import digest_of, read_moments, write_moments

logger = logging.getLogger(__name__)

MIN_IMAGES = 32
"""Fewest images that rank prompts as true running statistics do, by the specification of FPG."""
_BATCH, _LARGE, _BATCH_OF_LARGE = 64, 128, 4
"""Images of a pass, and fewer from a side in px at which a pass takes seconds on a CPU."""
_REPORT_EVERY_S = 5.0
_VERSION = 1
"""Of the way in which images are chosen or drawn and moments are computed; part of the digest."""


def measure_reference(
    teacher: Teacher, config: OneTeacherConfig, image_size: int, keep: bool = True
) -> None:
    """Give the teacher a prior from natural images, if its own BatchNorm has none.

    Moments that were measured before with the same teacher, images, sizes, precision, kind of
    device, threads and version of torch are read from their file; they are the same to the bit. A
    damaged file is measured again; a folder that cannot be written costs only time. The log says
    both.

    Args:
        teacher: With the device and dtype with which it will be used.
        config: Says which images, and the teacher's precision.
        image_size: Side in px of the images that students see; the reference images are brought to
            it first, and from there to the teacher's own size, as prompted images are (our choice).
        keep: Read and write the file. False for a module whose code nobody can hash: its state does
            not say what it computes.

    Raises:
        DataError: ``teacher.reference`` is no folder, has too few images, or a broken one.
    Source: the specification of FPG; for folded or absent BatchNorm, moments measured once on
    natural images rank prompts as true running statistics do.
    """
    chosen = _choose(config) if config.reference else None
    if teacher.has_reference:
        if chosen:
            logger.warning(
                "teacher.reference is not used: teacher %s has feature moments of its own data",
                teacher.name,
            )
        return
    if not keep:
        _measure(teacher, config, image_size, chosen)
        return
    settings = _settings(teacher, config, image_size, chosen)
    name = re.sub(r"[^\w.-]", "_", config.name)
    file = f"{name}-{digest_of(settings)[:16]}.safetensors"
    path = paths.teachers_dir() / "moments" / file
    if path.exists():
        try:
            moments = read_moments(path, settings)
        except TeacherError as error:
            logger.warning("%s; they are measured again", error)
        else:
            logger.info("the feature moments of teacher %s are in %s", teacher.name, path)
            teacher.use_reference(moments)
            return
    _measure(teacher, config, image_size, chosen)
    try:
        write_moments(path, teacher.reference, settings)
    except OSError as error:
        logger.warning(
            "cannot keep the feature moments at %s: %s; they are measured anew in every run until "
            "FEDKD_TEACHERS names a folder that can be written",
            path,
            error.strerror or error,
        )
    else:
        logger.info("the feature moments of teacher %s are kept in %s", teacher.name, path)


def _measure(
    teacher: Teacher, config: OneTeacherConfig, image_size: int, chosen: list[Path] | None
) -> None:
    what = f"images of {config.reference}" if chosen else "procedural images"
    number = len(chosen) if chosen else config.reference_images
    logger.info("measuring the feature moments of %s on %d %s", teacher.name, number, what)
    if chosen:
        images = _decode(chosen, image_size)
    else:
        images = dead_leaves(config.reference_images, image_size, seed=0)
    side = teacher.input_size or image_size
    teacher.measure_reference(_batches(images, _BATCH if side < _LARGE else _BATCH_OF_LARGE))


def _batches(images: npt.NDArray[np.uint8], batch_size: int) -> Iterator[Tensor]:
    last = time.monotonic()
    for start in range(0, len(images), batch_size):
        if time.monotonic() - last >= _REPORT_EVERY_S:
            last = time.monotonic()
            logger.info("measured %d of %d images", start, len(images))
        yield torch.from_numpy(images[start : start + batch_size]) / 255


def _settings(
    teacher: Teacher, config: OneTeacherConfig, image_size: int, chosen: list[Path] | None
) -> dict[str, Any]:
    """All that decides about the bits of the moments."""
    network = teacher.backbone
    if chosen:
        contents = "".join(hash_file(path) for path in chosen)
        images = f"{len(chosen)} files, sha256 {hashlib.sha256(contents.encode()).hexdigest()}"
    else:
        images = f"{config.reference_images} dead leaves, seed 0"
    return {
        "version": _VERSION,
        "teacher": config.name,
        "state_sha256": states.sha256(network.state_dict()),
        # An activation is in no state, but in the network's text.
        "network_sha256": hashlib.sha256(repr(network).encode()).hexdigest(),
        "mean": teacher.mean.flatten().tolist(),
        "std": teacher.std.flatten().tolist(),
        "images": images,
        "image_size": image_size,
        "input_size": teacher.input_size,
        "precision": teacher.precision,
        "dtype": str(teacher.mean.dtype),
        "device": teacher.mean.device.type,
        "num_threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def _choose(config: OneTeacherConfig) -> list[Path]:
    """The files of the user's folder that are used: a seeded choice among all, sorted by path."""
    folder = paths.expand(config.reference, "teacher.reference")
    if not folder.is_dir():
        raise DataError(
            f"teacher.reference is {folder}, but there is no such folder; give one with natural "
            'images, or "" for procedural ones'
        )
    endings = Image.registered_extensions()
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)
    if len(found) < MIN_IMAGES:
        raise DataError(
            f"teacher.reference is {folder}, which has {len(found)} image files; it must have at "
            f'least {MIN_IMAGES}: put more there, or give "" for procedural images'
        )
    number = config.reference_images
    if len(found) < number:
        logger.info("teacher.reference has %d images; all of them are used", len(found))
    order = seeding.rng(0, "reference-images").permutation(len(found))
    return [found[index] for index in sorted(order[:number])]


def _decode(chosen: list[Path], size: int) -> npt.NDArray[np.uint8]:
    images, faults = decode_files(chosen, size)
    if faults:
        names = [f"{chosen[index]} ({reason})" for index, reason in faults]
        raise DataError(
            f"teacher.reference has {len(faults)} image(s) that cannot be read: {first_of(names)}; "
            "mend or remove them"
        )
    return images
