"""The data set ``folder``: the user's own image files, and a CSV that says what each one is.

Everything that can be wrong is found before training starts, and all of it is said at once, with
the rows of the CSV it is about.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import PIL
from pydantic import Field, field_validator

from fedkd import paths
from fedkd.config import Section
from fedkd.data.cache import load_or_build
from fedkd.data.image_files import decode_files
from fedkd.data.image_table import Problems, check_table, read_table
from fedkd.data.images import Integers, LabelledImages, Splits
from fedkd.errors import DataError

_CACHE_VERSION = 1


class FolderConfig(Section):
    """Image files of any format that Pillow reads, described by a CSV with a header line."""

    name: Literal["folder"] = "folder"
    """Selects this data set."""
    images: str
    """Folder of the image files; ``${FEDKD_DATA}`` and other variables are filled in."""
    csv: str
    """CSV in UTF-8, one row per image; variables are filled in. Space around values is dropped."""
    id_column: str = "image_id"
    """Column of the file names relative to ``images``, with or without extension."""
    label_column: str = "label"
    """Column of the class names."""
    site_column: str | None = None
    """Column of the hospitals; none means one site, ``all``."""
    split_column: str = "split"
    """Column that says whether a row belongs to train, val or test."""
    train_value: str = "train"
    """What the split column holds for training images."""
    val_value: str = "val"
    """What the split column holds for validation images."""
    test_value: str = "test"
    """What the split column holds for test images."""
    group_column: str | None = None
    """Column of the lesion or patient; images of one group in two splits are refused as a leak.
    Rows without a value form no group."""
    extension: str = ".jpg"
    """Added to ids that have no suffix."""
    classes: tuple[str, ...] = ()
    """Class names in the order of their indices; empty means all labels of the CSV, sorted."""
    size: int = Field(64, ge=16, le=1024)
    """Width and height in pixels, 16..1024, to which every image is resized (bilinear with
    antialiasing; the aspect ratio is not kept). All images together must fit into memory."""
    require_all_sites: bool = True
    """Refuse the data if a site has no training image; false allows sites in val and test only."""

    @field_validator("classes")
    @classmethod
    def _no_class_twice(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in classes if classes.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(map(repr, twice))} stands there twice; name each once")
        return classes

    @property
    def split_values(self) -> tuple[str, str, str]:
        """Values of the split column for train, val and test."""
        return self.train_value, self.val_value, self.test_value


def load(config: FolderConfig, cache_dir: Path | None = None) -> Splits:
    """Train, val and test; decoded the first time, read from the cache afterwards.

    The rows of each split stay in the order of the CSV. The cache notices any change of the CSV
    and of name, size or modification time of a file.

    Args:
        config: Where the images are and how the CSV is to be read.
        cache_dir: Where to keep the decoded images; by default the user's cache.

    Raises:
        ConfigError: A variable in a path is not set.
        DataError: Missing CSV, folder or column; or, with all their rows counted and the first
            ones named: missing, empty or broken file, duplicate id, unknown or empty label, site
            or split value, empty split, site without training image, group in two splits.
    """
    csv = paths.expand(config.csv, "data.csv")
    content = read_bytes(csv, "data.csv")
    folder = open_folder(config.images, "data.images")
    columns = {
        "id": config.id_column,
        "label": config.label_column,
        "split": config.split_column,
        "site": config.site_column,
        "group": config.group_column,
    }
    table = read_table(csv, content, columns)
    problems = Problems(csv)
    check_table(
        table,
        config.split_values,
        classes=config.classes,
        require_all_sites=config.require_all_sites,
        problems=problems,
    )
    classes = config.classes or tuple(sorted(set(table["label"])))
    return load_images(
        config.name,
        table,
        folder,
        {label: label for label in classes},
        split_values=config.split_values,
        extension=config.extension,
        size=config.size,
        key=config.model_dump_json(exclude={"images", "csv"}),
        content=content,
        problems=problems,
        cache_dir=cache_dir,
    )


def open_folder(text: str, key: str) -> Path:
    """The folder that a key of the recipe names; DataError if it is none."""
    folder = paths.expand(text, key)
    if not folder.is_dir():
        raise DataError(f"{key} is {folder}, which is not a folder; check the path")
    return folder


def read_bytes(csv: Path, key: str) -> bytes:
    """Content of a file that a key of the recipe names; DataError if it cannot be read."""
    try:
        return csv.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{key} is {csv}, which does not exist; check the path") from None
    except OSError as error:
        raise DataError(f"cannot read {key} {csv}: {error}") from None


def image_files(folder: Path, ids: Iterable[str], extension: str = ".jpg") -> list[Path]:
    """File of each id; those without suffix get ``extension``."""
    return [folder / (name if Path(name).suffix else f"{name}{extension}") for name in ids]


def load_images(
    name: str,
    table: pd.DataFrame,
    folder: Path,
    classes: Mapping[str, str],
    *,
    split_values: tuple[str, str, str],
    extension: str,
    size: int,
    key: str,
    content: bytes,
    problems: Problems,
    cache_dir: Path | None,
) -> Splits:
    """Check the files of a table that says what each one is, and decode them or read the cache.

    Args:
        name: Of the data set; starts the cache file's name.
        table: Columns id, label, split and, optionally, site, as :func:`check_table` wants them.
        folder: Where the files are.
        classes: Class name of each label, in the order of the class indices.
        split_values: What the split column holds for train, val and test.
        extension: Added to ids that have no suffix.
        size: Width and height in pixels to which every image is resized.
        key: Settings that the splits depend on, for the cache.
        content: What the table was made from, for the cache.
        problems: What was found already; raised with what is wrong with the files.
        cache_dir: Where to keep the decoded images; None is the user's cache.

    Raises:
        DataError: Anything in ``problems``, or a missing, empty, twice-named or broken file.
    """
    files = image_files(folder, table["id"], extension)
    stats = _check_files(files, table, problems)
    problems.raise_if_any()
    digest = hashlib.sha256(content)
    for file, (num_bytes, modified_ns) in zip(files, stats, strict=True):
        digest.update(f"{file.relative_to(folder)}\0{num_bytes}\0{modified_ns}\n".encode())
    key = f"version {_CACHE_VERSION} pillow {PIL.__version__} {key} {digest.hexdigest()}"

    def build() -> Splits:
        return _build(table, files, classes, split_values, size, problems)

    return load_or_build(name, key, build, cache_dir)


def _check_files(
    files: list[Path], table: pd.DataFrame, problems: Problems
) -> list[tuple[int, int]]:
    """Size and modification time of each file; notes missing, empty and twice-named ones."""
    stats, missing, empty, twice = [], [], [], []
    seen: dict[Path, int | str] = {}
    for row, name, file in zip(table.index, table["id"], files, strict=True):
        if not name:
            stats.append((0, 0))
            continue
        if file in seen:
            twice.append((row, f"{name!r}, as in row {seen[file]}"))
        seen.setdefault(file, row)
        try:
            stat = file.stat()
        except OSError:
            stat = None
        if stat is None or not file.is_file():
            missing.append((row, str(file)))
        elif stat.st_size == 0:
            empty.append((row, str(file)))
        stats.append((stat.st_size, stat.st_mtime_ns) if stat else (0, 0))
    problems.add("name the same image twice", twice, "each image may stand there once")
    problems.add("name a file that does not exist", missing, "check data.images, data.extension")
    problems.add("name an empty file (0 bytes)", empty, "copy the files again")
    return stats


def _build(
    table: pd.DataFrame,
    files: list[Path],
    classes: Mapping[str, str],
    split_values: tuple[str, str, str],
    size: int,
    problems: Problems,
) -> Splits:
    # Sorted by split, so that each split is a view of one array and no pixel is held twice.
    split = _codes(table["split"], split_values)
    order = np.argsort(split, kind="stable")
    images, faults = decode_files([files[row] for row in order], size)
    broken = [
        (table.index[row], f"{table['id'].iloc[row]}: {why}")
        for row, why in sorted((int(order[at]), why) for at, why in faults)
    ]
    problems.add("name an image that cannot be decoded", broken, "replace the files, or their rows")
    problems.raise_if_any()
    table = table.iloc[order]
    sites = table["site"] if "site" in table else pd.Series("all", index=table.index)
    site_names = tuple(sorted(set(sites)))
    ends = np.cumsum(np.bincount(split, minlength=len(split_values)))
    parts = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    train, val, test = (
        LabelledImages(
            images=images[part],
            labels=_codes(table["label"], tuple(classes))[part],
            class_names=tuple(classes.values()),
            sites=_codes(sites, site_names)[part],
            site_names=site_names,
            ids=tuple(table["id"].iloc[part]),
        )
        for part in parts
    )
    return Splits(train, val, test)


def _codes(values: "pd.Series[str]", names: Sequence[str]) -> Integers:
    """Index of each value in ``names``, int64."""
    code = {name: index for index, name in enumerate(names)}
    return np.array([code[value] for value in values], np.int64)
