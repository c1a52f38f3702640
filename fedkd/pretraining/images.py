"""The images of a pre-training, wherever they come from, and what the network sees of them."""

import difflib
import hashlib
import inspect
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL
import torch
import torchvision
from PIL import Image
from torch import Tensor

from fedkd.data.cache import load_or_build
from fedkd.data.catalog import load_splits
from fedkd.data.dead_leaves import dead_leaves
from fedkd.data.image_table import Problems
from fedkd.data.images import LabelledImages, Splits
from fedkd.data.labelled_files import ImageFilesConfig, load_images, open_folder
from fedkd.data.pixels import Integers, Pixels
from fedkd.errors import ConfigError, DataError
from fedkd.pretraining.config import ImagesConfig, PretrainConfig

logger = logging.getLogger(__name__)

MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
"""Input normalisation: our choice for procedural images, whose channels are alike; kept for others,
as BatchNorm takes care of the rest."""

_REPORT_EVERY_S = 5.0
_AT_ONCE = 1024
_PICKLED = ("LSUN", "LSUNClass")
"""Data sets whose unchecked pickle torchvision loads; CIFAR's pickles have a known MD5."""
UNLABELLED = ("unlabelled",)
"""Class names of images that nobody has labelled."""


def normalize(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] to the network's input."""
    return (pixels - MEAN[0]) / STD[0]


def pixels_of(images: Pixels | Tensor, rows: Integers, device: torch.device | str) -> Tensor:
    """Pixels of some images in [0, 1], float32 (len(rows), 3, height, width)."""
    return torch.as_tensor(np.asarray(images[rows])).to(device).float() / 255


def read_images(config: PretrainConfig) -> Pixels:
    """All images of a recipe, uint8 (num_images, 3, height, width), in memory or mapped from disk.

    Raises:
        ConfigError: A variable in a path is not set, or torchvision has no such data set.
        DataError: Missing or broken files, which are named, or fewer than two images.
    """
    source = config.images
    if source.source == "dead_leaves":
        return dead_leaves(config.num_images, config.source_size, config.seed)
    if source.data is not None:
        images = load_splits(source.data).train.images
    else:
        root = open_folder(str(source.folder), "images.folder")
        if source.torchvision is None:
            images = _read_folder(root, config.source_size)
        else:
            images = _read_torchvision(root, source.torchvision, config.source_size)
    if len(images) < 2:
        raise DataError(f"{describe(source)} has {len(images)} image(s); at least 2 are needed")
    return images


def describe(source: ImagesConfig) -> str:
    """Where images come from, in words, without a path."""
    if source.data is not None:
        return f"the training split of {source.data.name}"
    if source.torchvision is not None:
        return f"torchvision's {source.torchvision}"
    return {"dead_leaves": "procedural dead leaves", "folder": "a folder of image files"}[
        source.source
    ]


def content_hash(images: Pixels) -> str:
    """SHA-256 of all pixels in their order, and of their shape."""
    digest = hashlib.sha256(str(images.shape).encode())
    for start in range(0, len(images), _AT_ONCE):
        digest.update(np.ascontiguousarray(images[start : start + _AT_ONCE]).tobytes())
    return digest.hexdigest()


def _read_folder(root: Path, size: int) -> Pixels:
    """Every file below a folder whose ending Pillow knows, by path; hidden ones are left out."""
    # Pillow can write some formats, such as PDF, that it cannot read.
    endings = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found = [
        path
        for path in sorted(root.rglob("*"))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(root).parts)
    ]
    ids = [path.relative_to(root).as_posix() for path in found if path.suffix.lower() in endings]
    if not ids:
        raise DataError(
            f"images.folder is {root}, which holds no image file ({len(found)} others); endings "
            "such as .jpg, .png, .tif or .bmp are looked for, in all folders below it"
        )
    if len(found) > len(ids):
        logger.warning(
            "%s: %d of %d files are left out, as their endings are not those of images",
            root,
            len(found) - len(ids),
            len(found),
        )
    table = pd.DataFrame(
        {"id": ids, "label": UNLABELLED[0], "split": "train"}, index=range(1, len(ids) + 1)
    )
    config = ImageFilesConfig(name="unlabelled", size=size)
    return load_images(
        config,
        table,
        root,
        {UNLABELLED[0]: UNLABELLED[0]},
        extension="",
        key=config.cache_key(),
        content="\n".join(ids).encode(),
        problems=Problems(root),
        cache_dir=None,
    ).train.images


def _read_torchvision(root: Path, name: str, size: int) -> Pixels:
    kind: Any = getattr(torchvision.datasets, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, torchvision.datasets.VisionDataset)):
        known = {other.lower(): other for other in torchvision.datasets.__all__}
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {known[near[0]]}?" if near else "its documentation lists them"
        raise ConfigError(f"images.torchvision is {name!r}, no data set of torchvision; {hint}")
    if name in _PICKLED:
        raise ConfigError(
            f"images.torchvision is {name!r}, for which torchvision reads a pickle file of unknown "
            "origin, which can run any command; name a folder of its images in images.folder"
        )
    open_set: Callable[..., torchvision.datasets.VisionDataset] = kind
    accepted = inspect.signature(open_set).parameters
    choices = {"train": True, "split": "unlabeled" if name == "STL10" else "train",
               "download": False}  # fmt: skip
    arguments = {key: value for key, value in choices.items() if key in accepted}
    try:
        data = open_set(str(root), **arguments)
        len(data)  # which some that are no data set of images cannot say
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        place = root / getattr(kind, "base_folder", "")
        raise DataError(
            f"torchvision cannot open {name} in {root}: {error}; nothing is downloaded here: its "
            f"files belong in {place}, where torchvision.datasets.{name}({str(root)!r}, "
            "download=True) puts them on a machine that is online"
        ) from None
    there = [path for path in sorted(root.rglob("*")) if path.is_file()]
    stats = [(path.relative_to(root).as_posix(), path.stat()) for path in there]
    found = "".join(f"{path}\0{s.st_size}\0{s.st_mtime_ns}\n" for path, s in stats)
    key = f"version 1 pillow {PIL.__version__} {name} {size} {root.resolve()} {found}"
    return load_or_build("torchvision", key, lambda: _decode(data, name, size)).train.images


def _decode(data: torchvision.datasets.VisionDataset, name: str, size: int) -> Splits:
    pixels = np.empty((len(data), 3, size, size), np.uint8)
    logger.info(
        "reading %d images of torchvision's %s, resized to %d px ...", len(data), name, size
    )
    last = time.monotonic()
    for row in range(len(data)):
        try:
            picture = data[row][0]
        except Exception as error:  # each data set raises its own
            raise DataError(
                f"torchvision cannot read image {row} of {name}: {error}; repair or remove its file"
            ) from None
        if not isinstance(picture, Image.Image):
            raise DataError(
                f"images.torchvision is {name}, whose examples are {type(picture).__name__}, not "
                "pictures; choose a data set of single images"
            )
        small = picture.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        pixels[row] = np.asarray(small).transpose(2, 0, 1)
        if time.monotonic() - last >= _REPORT_EVERY_S:
            last = time.monotonic()
            logger.info("read %d of %d images", row + 1, len(data))
    train = LabelledImages(pixels, np.zeros(len(pixels), np.int64), UNLABELLED)
    none = LabelledImages(pixels[:0], np.zeros(0, np.int64), UNLABELLED)
    return Splits(train, none, none)
