"""What the data sets made of ISIC 2019 images and published lists share.

The images are the 25,331 training images of the ISIC 2019 challenge (challenge.isic-archive.com,
"ISIC 2019: Training"; CC BY-NC 4.0, which forbids commercial use, and the terms of use there ask
to cite HAM10000 (Tschandl et al., Sci. Data 5:180161, 2018), BCN20000 (Combalia et al., 2019,
arXiv 1908.02288) and Codella et al. (2018, arXiv 1710.05006)). Published counts: MEL 4522,
NV 12875, BCC 3323, AK 867, BKL 2624, DF 239, VASC 253, SCC 628. The lists are CSVs, one per split,
that name them without ending.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from fedkd.data.image_table import Problems, check_table, read_table
from fedkd.data.images import SPLITS, Splits
from fedkd.data.labelled_files import (
    ImageFilesConfig,
    image_files,
    load_images,
    open_folder,
    read_bytes,
)
from fedkd.errors import DataError, first_of

logger = logging.getLogger(__name__)

CLASS_NAMES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
"""Classes in the order of ISIC 2019: melanoma, nevus, basal cell carcinoma, actinic keratosis,
benign keratosis, dermatofibroma, vascular lesion, squamous cell carcinoma."""


class IsicConfig(ImageFilesConfig):
    """Images of ISIC 2019, described by lists."""

    name: str
    """Selects this data set."""
    images: str = "${FEDKD_DATA}/isic2019/images"
    """Folder of the ISIC 2019 images (``<image>.jpg``); ``${FEDKD_DATA}`` and other variables are
    filled in."""
    fold: int = Field(1, ge=1, le=5)
    """Number of the authors' split, 1..5; it is part of the lists' names."""
    size: int = Field(224, ge=16, le=1024)
    """Width and height in pixels, 16..1024, to which every image is resized (bilinear with
    antialiasing; the aspect ratio is not kept). The whole of ISIC 2019 at 224 px is 3.8 GB."""
    missing: Literal["refuse", "skip"] = "refuse"
    """What to do about listed images that are not in ``images``: refuse the data, or skip them and
    say how many were skipped. Figures on a part of the images compare with no published ones."""


def read_lists(
    folder: Path, lists: Mapping[str, Mapping[str, str]], columns: Mapping[str, str]
) -> tuple[pd.DataFrame, bytes]:
    """All rows of some lists in one table.

    Args:
        folder: Where the lists are, the key ``data.lists``.
        lists: For each file name, further columns that all its rows get.
        columns: Column of the lists for the purposes id and label.

    Returns:
        Columns of the purposes and the further ones, all text; the index says which row of which
        file it is, such as ``"7 of train.csv"``. And the names and contents of the files.

    Raises:
        DataError: Files or a column are missing, or a file is no CSV.
    """
    absent = [name for name in lists if not (folder / name).exists()]
    if absent:
        there = sorted(file.name for file in folder.glob("*.csv"))
        raise DataError(
            f"data.lists is {folder}, which lacks {len(absent)} of {len(lists)} lists: "
            f"{first_of(absent)}; copy the authors' files there or change data.fold. "
            f"It has {first_of(there) or 'no CSV'}"
        )
    tables, contents = [], []
    for name, constants in lists.items():
        content = read_bytes(folder / name, "data.lists")
        table = read_table(folder / name, content, columns, have_keys=False)
        table.index = pd.Index([f"{row} of {name}" for row in table.index])
        tables.append(table.assign(**constants))
        contents.append(f"{name} {len(content)}\n".encode() + content)
    return pd.concat(tables), b"".join(contents)


def load_lists(
    config: IsicConfig,
    table: pd.DataFrame,
    class_names: tuple[str, ...],
    content: bytes,
    source: Path,
    remedy: str = "",
    cache_dir: Path | None = None,
) -> Splits:
    """Check a table of images and load it; the rest is as for the data set ``folder``.

    Args:
        config: Where the images are, their size, and what to do about missing ones.
        table: Columns id, label ("0", "1", ...), split (train, val, test) and, optionally, site
            and group. Groups in two splits are no fault: the lists are used as published.
        class_names: Name of each label.
        content: What the table was made from, for the cache.
        source: Where it was, for errors.
        remedy: What else may help when images are missing.
        cache_dir: Where to keep the decoded images; by default the user's cache.

    Raises:
        DataError: Images are missing and may not be skipped, or a split has none; or what
            :func:`fedkd.data.sets.folder.load` finds.
    """
    folder = open_folder(config.images, "data.images")
    problems = Problems(source)
    classes = {str(label): name for label, name in enumerate(class_names)}
    # A site may be left without training images if they are missing and skipped.
    checked = table.drop(columns="group", errors="ignore")
    check_table(checked, SPLITS, tuple(classes), require_all_sites=False, problems=problems)
    return load_images(
        config,
        _without_missing(table, folder, config.missing, remedy, problems),
        folder,
        classes,
        key=config.cache_key("images", "lists", "split_csv", "metadata"),
        content=content,
        problems=problems,
        cache_dir=cache_dir,
    )


def _without_missing(
    table: pd.DataFrame, folder: Path, policy: str, remedy: str, problems: Problems
) -> pd.DataFrame:
    """The rows whose image is there; the others are noted as a problem or said in the log."""
    there = np.array([
        not name or file.is_file()
        for name, file in zip(table["id"], image_files(folder, table["id"]), strict=True)
    ])  # fmt: skip
    if there.all():
        return table
    counts = ", ".join(
        f"{part} {len(rows) - rows.sum()} of {len(rows)}"
        for by in ("split", "site")
        if by in table
        for part, rows in pd.Series(there).groupby(table[by].to_numpy(), sort=False)
        if not rows.all()
    )
    named = (
        f"{(~there).sum()} of {len(there)} listed images are not in data.images {folder}: "
        f"{counts}; the first are {first_of(list(table.loc[~there, 'id']))}"
    )
    if policy == "refuse":
        problems.add_line(f'{named}. Copy them there{remedy} or set data.missing = "skip"')
        return table[there]
    empty = [split for split in SPLITS if not (table.loc[there, "split"] == split).any()]
    if empty:
        problems.add_line(f"{named}. Nothing is left of {' and '.join(empty)}; check data.images")
    logger.warning("%s: %s. They are skipped", problems.csv, named)
    return table[there]
