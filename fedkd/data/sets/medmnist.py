"""The data set ``medmnist``: the eleven 2-D single-label sets of MedMNIST+.

Yang et al., "MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D biomedical image
classification", Sci. Data 10:41, 2023; medmnist.com; files on Zenodo (record 10519652), 28, 64, 128
or 224 px. All are CC BY 4.0 but dermamnist, which is CC BY-NC 4.0. Counts, classes, addresses and
licences are those of the ``medmnist`` package (extra ``medmnist``); its official splits are used as
they are. The files name neither patient nor hospital: one site, and leaks between splits cannot be
seen. DermaMNIST is HAM10000, 10,015 images of 7,470 lesions; use ``ham10000`` for splits that keep
lesions whole.

A file ``<flag>.npz`` (28 px) or ``<flag>_<size>.npz`` holds ``{train,val,test}_images``, uint8
(n, size, size) or (n, size, size, 3), and ``{train,val,test}_labels``, (n, 1).
"""

import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import field_validator

from fedkd import paths
from fedkd.config import Section
from fedkd.data.cache import load_or_build
from fedkd.data.card import DataCard, Download
from fedkd.data.images import SPLITS, LabelledImages, Splits
from fedkd.errors import DataError, DependencyError
from fedkd.files import is_special

FLAGS = (
    "pathmnist",
    "dermamnist",
    "octmnist",
    "pneumoniamnist",
    "retinamnist",
    "breastmnist",
    "bloodmnist",
    "tissuemnist",
    "organamnist",
    "organcmnist",
    "organsmnist",
)
"""The sets whose images are 2-D and have one label each; retinamnist's is a grade."""

_BROKEN = (OSError, EOFError, ValueError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)

CARD = DataCard(
    title="MedMNIST+, the 2-D single-label sets",
    source="https://medmnist.com",
    licence="CC BY 4.0; dermamnist CC BY-NC 4.0: no commercial use",
    citation=(
        "Yang et al., Sci. Data 10:41, 2023 (MedMNIST v2)",
        "the source of the set, see medmnist.com",
    ),
    fixed_splits=(("train", "val"), ("train", "test"), ("val", "test")),
)


class MedMnistConfig(Section):
    """One of the 2-D single-label sets of MedMNIST+, one hospital."""

    name: Literal["medmnist"] = "medmnist"
    """Selects this data set."""
    flag: str = "dermamnist"
    """The set: pathmnist, dermamnist, octmnist, pneumoniamnist, retinamnist, breastmnist,
    bloodmnist, tissuemnist, organamnist, organcmnist or organsmnist."""
    size: Literal[28, 64, 128, 224] = 28
    """Width and height in pixels: 28, 64, 128 or 224, each a file of its own."""
    root: str = "${FEDKD_DATA}/medmnist"
    """Folder of the npz files; variables are filled in. Nothing is downloaded unasked."""

    @field_validator("flag")
    @classmethod
    def _is_single_label(cls, flag: str) -> str:
        if flag in FLAGS:
            return flag
        reason = ""
        if flag == "chestmnist":
            reason = " has several labels per image, which fedkd cannot train on"
        elif flag.endswith("3d"):
            reason = " is 3-D; fedkd trains on 2-D images"
        raise ValueError(f"{flag!r}{reason or ' is unknown'}; allowed are {', '.join(FLAGS)}")


def card_for(config: MedMnistConfig) -> DataCard:
    """What the package says of the set (DependencyError without it)."""
    entry = _info(config.flag)
    return replace(
        CARD,
        title=f"{config.flag} of MedMNIST+, {config.size} px",
        licence=entry["license"],
        split_counts=entry["n_samples"],
        downloads=downloads(config.flag, config.size),
    )


def downloads(flag: str, size: int) -> tuple[Download, ...]:
    """The file of one set and size, as the package names it (DependencyError without it)."""
    suffix = "" if size == 28 else f"_{size}"
    entry = _info(flag)
    return (
        Download(
            url=entry[f"url{suffix}"],
            path=f"medmnist/{flag}{suffix}.npz",
            md5=entry[f"MD5{suffix}"],
        ),
    )


def load(config: MedMnistConfig, cache_dir: Path | None = None) -> Splits:
    """Train, val and test of the file, in its order; grey is repeated into three channels.

    While the file is read for the first time, all its pixels are in memory.

    Args:
        config: Which set, which size and where the file is.
        cache_dir: Where to keep the unpacked images; by default the user's cache.

    Raises:
        ConfigError: A variable in the path is not set.
        DataError: The file is missing, damaged or not of this set and size.
        DependencyError: The extra ``medmnist`` is not installed.
    """
    entry = _info(config.flag)
    suffix = "" if config.size == 28 else f"_{config.size}"
    file = paths.expand(config.root, "data.root") / f"{config.flag}{suffix}.npz"
    fetch = f"fedkd data fetch medmnist flag={config.flag} size={config.size}"
    try:
        stat = file.stat()
    except OSError:
        raise DataError(
            f"{file.name} is not in data.root {file.parent}; get it with `{fetch}`, or change "
            "data.root"
        ) from None
    if is_special(file):
        raise DataError(f"{file} is a pipe or a device, no file; get the file with `{fetch}`")
    key = f"{config.flag} {config.size} {stat.st_size} {stat.st_mtime_ns} {entry['label']}"

    def build() -> Splits:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                train, val, test = (_split(arrays, split, config, entry) for split in SPLITS)
        except DataError as error:
            raise DataError(
                f"{file} is not {config.flag} of {config.size} px: {error}; get it with `{fetch}`"
            ) from None
        except _BROKEN as error:
            raise DataError(
                f"{file} is damaged ({error}); delete it and get it anew with `{fetch}`"
            ) from None
        return Splits(train, val, test)

    return load_or_build(config.name, key, build, cache_dir)


def _split(
    arrays: Any, split: str, config: MedMnistConfig, entry: dict[str, Any]
) -> LabelledImages:
    absent = [key for key in (f"{split}_images", f"{split}_labels") if key not in arrays]
    if absent:
        raise DataError(f"it has no {' and '.join(absent)}")
    images: npt.NDArray[np.uint8] = arrays[f"{split}_images"]
    labels = arrays[f"{split}_labels"]
    colour = (3,) if entry["n_channels"] == 3 else ()
    expected = (config.size, config.size, *colour)
    if images.dtype != np.uint8 or images.shape[1:] != expected or not len(images):
        raise DataError(
            f"{split}_images are {images.dtype} {images.shape}, not uint8 (n, "
            f"{', '.join(map(str, expected))}) with n > 0"
        )
    num_classes = len(entry["label"])
    if labels.shape != (len(images), 1) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{split}_labels are {labels.dtype} {labels.shape}, not integers ({len(images)}, 1)"
        )
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {split}_labels are outside 0..{num_classes - 1}, the first is "
            f"{labels[bad[0], 0]} at index {bad[0]}"
        )
    pixels = images if colour else np.repeat(images[..., None], 3, axis=-1)
    return LabelledImages(
        images=np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)),
        labels=labels[:, 0].astype(np.int64),
        class_names=tuple(entry["label"][str(label)] for label in range(num_classes)),
        ids=tuple(f"{split}-{row:06d}" for row in range(len(images))),
    )


def _info(flag: str) -> dict[str, Any]:
    """What the package says of a set: addresses, check sums, classes, licence."""
    try:
        from medmnist.info import INFO
    except ImportError:
        raise DependencyError(
            "data.name is 'medmnist' but medmnist is not installed; pip install 'fedkd[medmnist]'"
        ) from None
    entry: dict[str, Any] = INFO[flag]
    return entry
