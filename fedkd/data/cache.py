"""Data sets on disk, ready to use: what took seconds to draw or decode is read back at once.

A cache file is an uncompressed ``.npz`` without pickles, whose parts carry check sums. It may be
deleted at any time. One that cannot be read or does not fit is made again, and one that cannot be
written costs only time; both are said in the log.
"""

import hashlib
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedkd import paths
from fedkd.data.images import LabelledImages, Splits
from fedkd.errors import DataError
from fedkd.files import replacing

logger = logging.getLogger(__name__)

_SPLITS = ("train", "val", "test")
_FORMAT = 2


def load_or_build(
    name: str, key: str, build: Callable[[], Splits], cache_dir: Path | None = None
) -> Splits:
    """The cached splits, or else what ``build`` returns, which is then cached.

    Args:
        name: Of the data set; starts the file's name.
        key: Text that holds everything the splits depend on; equal keys mean equal splits.
        build: Makes the splits; its errors pass through.
        cache_dir: Folder of the files; by default :func:`fedkd.paths.cache_dir`.
    """
    folder = paths.cache_dir() if cache_dir is None else cache_dir
    digest = hashlib.sha256(f"format {_FORMAT} {key}".encode()).hexdigest()
    path = folder / f"{name}-{digest[:32]}.npz"
    cached = _read(path)
    if cached is not None:
        return cached
    splits = build()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            np.savez(part, allow_pickle=False, **_pack(splits))
    except OSError as error:
        logger.warning(
            "cannot cache the data set in %s (%s); the next start takes as long as this one. "
            "Set FEDKD_CACHE to a folder that can be written",
            folder,
            error,
        )
    return splits


def _read(path: Path) -> Splits | None:
    """The splits in a cache file, or None if there is none or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return _unpack({name: file[name] for name in file.files})
    except (FileNotFoundError, NotADirectoryError):
        return None
    # What a damaged zip or array header raises is not documented: a broken flag byte, for one,
    # reads as encryption (RuntimeError) or as an unknown compression (NotImplementedError).
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        MemoryError,
        SyntaxError,
        OverflowError,
        zipfile.BadZipFile,
        DataError,
    ) as error:
        logger.warning("the cached data set %s is damaged (%s); making it again", path, error)
        return None


def _pack(splits: Splits) -> dict[str, npt.NDArray[Any]]:
    arrays: dict[str, npt.NDArray[Any]] = {
        "class_names": np.array(splits.train.class_names),
        "site_names": np.array(splits.train.site_names),
    }
    for name in _SPLITS:
        split: LabelledImages = getattr(splits, name)
        for part in ("images", "labels", "sites"):
            arrays[f"{name}_{part}"] = getattr(split, part)
        arrays[f"{name}_ids"] = np.array(split.ids)
        arrays[f"{name}_groups"] = np.array(split.groups)
    return arrays


def _unpack(arrays: dict[str, npt.NDArray[Any]]) -> Splits:
    return Splits(**{
        name: LabelledImages(
            images=arrays[f"{name}_images"],
            labels=arrays[f"{name}_labels"],
            class_names=tuple(arrays["class_names"].tolist()),
            sites=arrays[f"{name}_sites"],
            site_names=tuple(arrays["site_names"].tolist()),
            ids=tuple(arrays[f"{name}_ids"].tolist()),
            groups=tuple(arrays[f"{name}_groups"].tolist()),
        )
        for name in _SPLITS
    })  # fmt: skip
