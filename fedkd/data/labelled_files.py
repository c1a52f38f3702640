"""From a table that says what each image file is to the splits of a data set.

Everything that can be wrong with the files is found before training starts, and all of it is said
at once, with the rows of the table it is about.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import PIL
from PIL import Image
from pydantic import Field

from fedkd import paths
from fedkd.config import Section
from fedkd.data.cache import Allocate, load_or_fill
from fedkd.data.image_files import decode_files, find_broken
from fedkd.data.image_table import Problems
from fedkd.data.images import SPLITS, Integers, LabelledImages, Splits
from fedkd.data.pixels import Pixels, Selection
from fedkd.data.streaming import FilePixels
from fedkd.errors import DataError
from fedkd.files import is_special

_CACHE_VERSION = 1

Read = Callable[[list[Path]], tuple[Pixels, list[tuple[int, str]]]]
"""Image files -> their pixels, and index and fault of each file that cannot be read."""

CHANGES_NO_NUMBER = {"store", "num_workers"}
"""Keys of :class:`ImageFilesConfig` that no image and no result depends on."""


class ImageFilesConfig(Section):
    """What all data sets of image files have in common."""

    name: str
    """Selects this data set."""
    size: int = Field(64, ge=16, le=1024)
    """Width and height in pixels, 16..1024, to which every image is resized (bilinear with
    antialiasing; the aspect ratio is not kept)."""
    store: Literal["mapped", "memory", "stream"] = "mapped"
    """Where decoded images are kept: mapped (a file that all clients, processes and runs share, of
    which memory holds what it has room for), memory (that file, read into memory at the start), or
    stream (nowhere: every batch is decoded anew, ahead of its use, and once before training to find
    broken files). No result depends on it."""
    num_workers: int | None = Field(None, ge=1, le=256)
    """Threads that decode image files, 1..256; not given means one per core, 16 at most."""

    def cache_key(self, *left_out: str) -> str:
        """The settings that images depend on, as text, without those ``left_out`` as well."""
        return self.model_dump_json(exclude={*left_out, *CHANGES_NO_NUMBER})


def open_folder(text: str, key: str) -> Path:
    """The folder that a key of the recipe names; DataError if it is none."""
    folder = paths.expand(text, key)
    if not folder.is_dir():
        raise DataError(f"{key} is {folder}, which is not a folder; check the path")
    return folder


def read_bytes(csv: Path, key: str) -> bytes:
    """Content of a file that a key of the recipe names; DataError if it cannot be read."""
    try:
        if is_special(csv):
            raise DataError(f"{key} is {csv}, which is no regular file; name a file that ends")
        return csv.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{key} is {csv}, which does not exist; check the path") from None
    except OSError as error:
        raise DataError(f"cannot read {key} {csv}: {error}") from None


def image_files(folder: Path, ids: Iterable[str], extension: str = ".jpg") -> list[Path]:
    """File of each id; ``extension`` is added where an id ends neither in it nor as images do.

    A dot alone makes no ending: "1.2.840" is ``1.2.840.jpg``.
    """
    endings = {extension.lower(), *Image.registered_extensions()}
    return [
        folder / (name if Path(name).suffix.lower() in endings else f"{name}{extension}")
        for name in ids
    ]


def load_images(
    config: ImageFilesConfig,
    table: pd.DataFrame,
    folder: Path,
    classes: Mapping[str, str],
    *,
    key: str,
    content: bytes,
    problems: Problems,
    cache_dir: Path | None,
    split_values: tuple[str, str, str] = SPLITS,
    extension: str = ".jpg",
    place: str = "data.images",
    if_missing: str = "check data.images, data.extension",
    links_may_leave: bool = True,
) -> Splits:
    """Check the files of a table that says what each one is, and open their pixels.

    They are decoded or read from the cache; with ``config.store = "stream"`` they are only checked.

    Args:
        config: Name of the data set, size of the images and where to keep them.
        table: Columns id, label, split and, optionally, site and group (the lesion or patient, ""
            for none), as :func:`fedkd.data.image_table.check_table` wants them.
        folder: Where the files are.
        classes: Class name of each label, in the order of the class indices.
        key: Settings that the splits depend on, for the cache.
        content: What the table was made from, for the cache.
        problems: What was found already; raised with what is wrong with the files.
        cache_dir: Where to keep the decoded images; None is the user's cache.
        split_values: What the split column holds for train, val and test.
        extension: As :func:`image_files` takes it.
        place: What names ``folder``, for errors.
        if_missing: What to do about files that are not there, for errors.
        links_may_leave: Follow links in ``folder`` to files elsewhere. The folder itself may be a
            link in either case.

    Raises:
        DataError: Anything in ``problems``, or a missing, empty, twice-named or broken file, or one
            outside the folder.
    """
    files = image_files(folder, table["id"], extension)
    stats = _check_files(folder, files, table, problems, place, if_missing, links_may_leave)
    if problems.lines:
        # Broken images are told with the rest, rather than at the next try.
        there = [row for row, (num_bytes, _) in enumerate(stats) if num_bytes]
        faults = find_broken([files[row] for row in there], 1, config.num_workers)
        _note_broken(table, [(there[at], why) for at, why in faults], problems)
    problems.raise_if_any()
    digest = hashlib.sha256(content)
    for file, (num_bytes, modified_ns) in zip(files, stats, strict=True):
        digest.update(f"{file.relative_to(folder)}\0{num_bytes}\0{modified_ns}\n".encode())
    key = f"version {_CACHE_VERSION} pillow {PIL.__version__} {key} {digest.hexdigest()}"

    build = partial(_build, table, files, classes, split_values, problems)
    if config.store == "stream":
        return build(lambda files: _stream(files, config))

    def fill(allocate: Allocate) -> Splits:
        return build(lambda files: decode_files(files, config.size, config.num_workers, allocate))

    splits = load_or_fill(config.name, key, fill, cache_dir)
    return _in_memory(splits) if config.store == "memory" else splits


def _stream(files: list[Path], config: ImageFilesConfig) -> tuple[Pixels, list[tuple[int, str]]]:
    pixels = FilePixels(files, config.size, config.num_workers)
    return pixels, find_broken(files, config.size, config.num_workers)


def _in_memory(splits: Splits) -> Splits:
    train, val, test = (
        replace(split, images=np.array(split.images))
        for split in (splits.train, splits.val, splits.test)
    )
    return Splits(train, val, test)


def _check_files(
    folder: Path,
    files: list[Path],
    table: pd.DataFrame,
    problems: Problems,
    place: str,
    if_missing: str,
    links_may_leave: bool,
) -> list[tuple[int, int]]:
    """Size and modification time of each file, zeros where it must not be read.

    Notes missing, empty and twice-named files and those outside the folder.
    """
    stats, missing, empty, twice, outside, links = [], [], [], [], [], []
    real_folder = os.path.realpath(folder)
    # Two names of one file (a link, "x/../") would pass from train into test.
    seen: dict[str, int | str] = {}
    for row, name, file in zip(table.index, table["id"], files, strict=True):
        stats.append((0, 0))
        if not name:
            continue
        if not Path(os.path.normpath(file)).is_relative_to(os.path.normpath(folder)):
            outside.append((row, repr(name)))
            continue
        real = os.path.realpath(file)
        if not (links_may_leave or Path(real).is_relative_to(real_folder)):
            links.append((row, repr(name)))
            continue
        first = seen.setdefault(real, row)
        if first != row:
            twice.append((row, f"{name!r}, as in row {first}"))
        try:
            stat = file.stat()
        except OSError:
            stat = None
        if stat is None or not file.is_file():
            missing.append((row, file))
            continue
        if stat.st_size == 0:
            empty.append((row, str(file)))
        stats[-1] = (stat.st_size, stat.st_mtime_ns)
    alike = _alike([file for _, file in missing])
    problems.add(f"lead out of {place}", outside, "name files inside that folder")
    problems.add(f"are links out of {place}", links, "copy the files themselves there")
    problems.add("name the same image twice", twice, "each image may stand there once")
    problems.add(
        "name a file that does not exist",
        [(row, f"{file}{alike.get(file, '')}") for row, file in missing],
        if_missing,
    )
    problems.add("name an empty file (0 bytes)", empty, "copy the files again")
    return stats


def _alike(missing: list[Path]) -> dict[Path, str]:
    """For missing files, one beside it that differs in case or ending only, as a hint."""
    hints = {}
    for folder in {file.parent for file in missing}:
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        by_stem = {key.lower(): name for name in names for key in (name, Path(name).stem)}
        for file in missing:
            if file.parent == folder and file.stem.lower() in by_stem:
                hints[file] = f", but {by_stem[file.stem.lower()]} does"
    return hints


def _note_broken(
    table: pd.DataFrame, faults: Iterable[tuple[int, str]], problems: Problems
) -> None:
    """Note files that cannot be decoded, by their position in the table."""
    broken = [(table.index[row], f"{table['id'].iloc[row]}: {why}") for row, why in sorted(faults)]
    problems.add("name an image that cannot be decoded", broken, "replace the files, or their rows")


def _build(
    table: pd.DataFrame,
    files: list[Path],
    classes: Mapping[str, str],
    split_values: tuple[str, str, str],
    problems: Problems,
    read: Read,
) -> Splits:
    # Sorted by split, so that each split is a view of one array and no pixel is held twice.
    split = _codes(table["split"], split_values)
    order = np.argsort(split, kind="stable")
    images, faults = read([files[row] for row in order])
    _note_broken(table, [(int(order[at]), why) for at, why in faults], problems)
    problems.raise_if_any()
    table = table.iloc[order]
    sites = table["site"] if "site" in table else pd.Series("all", index=table.index)
    site_names = tuple(sorted(set(sites)))
    groups = table["group"] if "group" in table else pd.Series("", index=table.index)
    rows = np.arange(len(table))
    ends = np.cumsum(np.bincount(split, minlength=len(split_values)))
    parts = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    train, val, test = (
        LabelledImages(
            images=images[part]
            if isinstance(images, np.ndarray)
            else Selection(images, rows[part]),
            labels=_codes(table["label"], tuple(classes))[part],
            class_names=tuple(classes.values()),
            sites=_codes(sites, site_names)[part],
            site_names=site_names,
            ids=tuple(table["id"].iloc[part]),
            groups=tuple(groups.iloc[part]),
        )
        for part in parts
    )
    return Splits(train, val, test)


def _codes(values: "pd.Series[str]", names: Sequence[str]) -> Integers:
    """Index of each value in ``names``, int64."""
    code = {name: index for index, name in enumerate(names)}
    return np.array([code[value] for value in values], np.int64)
