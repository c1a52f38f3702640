"""The data set ``image_folder``: the user's own images, a folder per class, as torchvision has it.

Either ``root/{train,val,test}/<class>/...`` or ``root/<class>/...``. Classes, their order and the
files that count as images are those of ``torchvision.datasets.ImageFolder``, whose functions look
for them. Other files are left out, and the log says how many.
"""

import logging
import re
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import field_validator
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from fedkd.data.card import DataCard
from fedkd.data.image_table import Problems, check_table
from fedkd.data.images import SPLITS, Splits
from fedkd.data.labelled_files import load_images, open_folder
from fedkd.data.splitting import DrawnSplitConfig, draw_split
from fedkd.errors import DataError

logger = logging.getLogger(__name__)

_ENDINGS = ", ".join(IMG_EXTENSIONS)
_LIKE_SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")
_NUM_SHOWN = 5

CARD = DataCard(title="Your own image files in a folder per class")


class ImageFolderConfig(DrawnSplitConfig):
    """Image files in a folder per class; splits are folders above them, or drawn by fedkd."""

    name: Literal["image_folder"] = "image_folder"
    """Selects this data set."""
    root: str
    """Folder that holds ``train``, ``test`` and, if there is one, ``val``, or the class folders
    themselves; variables are filled in."""
    group_pattern: str | None = None
    """Regular expression that is searched for in each file's name; what its first parentheses match
    is the lesion or patient, which fedkd's splits keep whole, such as ``"^(P[0-9]+)_"``."""
    site_pattern: str | None = None
    """Likewise for the hospital; left out, all images are one site's."""
    require_all_sites: bool = True
    """Refuse the data if a site has no training image; false allows sites in val and test only."""

    @field_validator("group_pattern", "site_pattern")
    @classmethod
    def _captures(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            captures = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        if not captures:
            raise ValueError(
                f"{pattern!r} has no parentheses; put them around what names the group or site"
            )
        return pattern


def load(config: ImageFolderConfig, cache_dir: Path | None = None) -> Splits:
    """Train, val and test, rows by path; an image's id is its path below ``root``.

    Args:
        config: Where the images are and how to split what is not split.
        cache_dir: Where to keep the decoded images; by default the user's cache.

    Raises:
        ConfigError: A variable in the path is not set.
        DataError: No class folders, a folder that is neither split nor class, a class that train
            has no folder of, a name that a pattern does not match, or what
            :func:`fedkd.data.sets.folder.load` finds.
    """
    root = open_folder(config.root, "data.root")
    table, classes, given = _find_images(root)
    problems = Problems(root)
    names = table["id"].str.rpartition("/")[2]
    for column, pattern in (("group", config.group_pattern), ("site", config.site_pattern)):
        if pattern is not None:
            table[column] = [_capture(pattern, name) for name in names]
            problems.add(
                f"have a name in which data.{column}_pattern finds nothing",
                [(row, repr(table.loc[row, "id"])) for row in table.index[table[column] == ""]],
                f"it is {pattern!r}; change it, or rename or remove the files",
            )
    problems.raise_if_any()
    if not given:
        table["split"] = config.draw(table)
    elif "val" not in given:
        train = table[table["split"] == "train"]
        table.loc[train.index, "split"] = draw_split(
            train,
            config.name,
            fraction_val=config.fraction_val,
            fraction_test=0,
            seed=config.split_seed,
        )
    check_table(table, SPLITS, classes, config.require_all_sites, problems)
    return load_images(
        config,
        table,
        root,
        {name: name for name in classes},
        extension="",
        key=config.cache_key("root"),
        content="\n".join([*classes, *table["id"]]).encode(),
        problems=problems,
        cache_dir=cache_dir,
    )


def _find_images(root: Path) -> tuple[pd.DataFrame, tuple[str, ...], tuple[str, ...]]:
    """Columns id, label and split, the classes, and the splits that have folders.

    Where none has, the column split says "train" of all. The index numbers the images from 1.
    """
    folders = _folders(root)
    splits = [name for name in SPLITS if name in folders]
    if not splits:
        if alike := [name for name in folders if name.lower() in _LIKE_SPLITS]:
            raise DataError(
                f"data.root {root} holds the folders {', '.join(alike)}, which would become "
                "classes; rename them to train, val and test"
            )
        return _read(root, {"train": root}), tuple(folders), ()
    other = [name for name in folders if name not in SPLITS]
    if other or not {"train", "test"} <= set(splits):
        raise DataError(
            f"data.root {root} holds the folders {', '.join(folders)}; it must hold train, test "
            "and perhaps val and no other folder, or class folders alone"
        )
    classes = _folders(root / "train")
    for split in splits[1:]:
        unknown = sorted(set(_folders(root / split)) - set(classes))
        if unknown:
            raise DataError(
                f"{root / split} has class folders that {root / 'train'} lacks: "
                f"{', '.join(unknown)}; correct their names, or make empty folders of these names "
                "in train if no image is known there"
            )
    table = _read(root, {split: root / split for split in splits})
    return table, tuple(classes), tuple(splits)


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted as torchvision sorts classes; at least one.

    Hidden ones, which editors leave, are none; torchvision would take them for empty classes.
    """
    names = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    )
    if not names:
        raise DataError(f"{folder} holds no folders; it must hold one per class")
    return names


def _read(root: Path, splits: dict[str, Path]) -> pd.DataFrame:
    rows, num_files = [], 0
    for split, folder in splits.items():
        classes = _folders(folder)
        samples = make_dataset(
            folder,
            {name: label for label, name in enumerate(classes)},
            IMG_EXTENSIONS,
            allow_empty=True,
        )
        if not samples:
            raise DataError(
                f"there is no image in the class folders of {folder}; images end in {_ENDINGS}"
            )
        if undecodable := [file for file, _ in samples if not _is_text(file)]:
            raise DataError(
                f"{len(undecodable)} file(s) in {folder} have a name or folder that is not UTF-8: "
                f"{', '.join(map(ascii, undecodable[:_NUM_SHOWN]))}; rename them"
            )
        rows += [
            (Path(file).relative_to(root).as_posix(), classes[label], split)
            for file, label in samples
        ]
        num_files += sum(path.is_file() for name in classes for path in (folder / name).rglob("*"))
    if num_files > len(rows):
        logger.warning(
            "%s: %d of %d files are left out, as they do not end in %s",
            root,
            num_files - len(rows),
            num_files,
            _ENDINGS,
        )
    return pd.DataFrame(rows, columns=["id", "label", "split"], index=range(1, len(rows) + 1))


def _capture(pattern: str, name: str) -> str:
    """What the first parentheses match; "" if nothing."""
    match = re.search(pattern, name)
    return (match[1] or "") if match else ""


def _is_text(name: str) -> bool:
    """Whether a file's name can be written as UTF-8; on Linux it may be any bytes."""
    return name.encode(errors="replace").decode() == name
