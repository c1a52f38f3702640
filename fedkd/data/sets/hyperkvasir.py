"""The data set ``hyperkvasir``: 10,662 labelled endoscopic images of the gut, 23 classes.

Borgli et al., "HyperKvasir, a comprehensive multi-class image and video dataset for
gastrointestinal endoscopy", Sci. Data 7:283, 2020 (doi:10.1038/s41597-020-00622-y);
datasets.simula.no/hyper-kvasir; CC BY 4.0. All images come from Baerum Hospital, Norway.

The archive ``hyper-kvasir-labeled-images.zip`` unpacks to

    labeled-images/image-labels.csv          Video file, Organ, Finding, Classification
    labeled-images/lower-gi-tract/<group>/<class>/<name>.jpg
    labeled-images/upper-gi-tract/<group>/<class>/<name>.jpg

with a row per image whose "Video file" is the file's name without ending. Here the folder gives the
class, and the table shows whether the copy is complete.

**No patient, examination or video is named**, so images of one patient can be in train and in test,
whoever splits; all figures on this data set share that.

The split is fedkd's own: each class is dealt to five folds of equal size, ``fold`` is test, and val
is drawn from the other four. Head, medium and tail are those of FoPro-KD (Elbatel et al., IEEE TMI
2024, arXiv 2305.17421): more than 700 images, 70 to 700, fewer than 70. These bounds are about the
whole data set, so the images of all three splits are counted (8 + 8 + 7 classes).
"""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from fedkd.data.card import DataCard, Download
from fedkd.data.image_table import Problems, check_table, read_table, shown
from fedkd.data.images import SPLITS, GroupBounds, Splits
from fedkd.data.labelled_files import ImageFilesConfig, load_images, open_folder, read_bytes
from fedkd.data.splitting import draw_split
from fedkd.errors import DataError, first_of
from fedkd.seeding import rng

BOUNDS = GroupBounds(tail_below=70, head_above=700)
"""Fewer images than the first are tail, more than the second head."""

FOLDERS = {
    "lower-gi-tract/anatomical-landmarks": {"cecum": 1009, "ileum": 9, "retroflex-rectum": 391},
    "lower-gi-tract/pathological-findings": {
        "hemorrhoids": 6,
        "polyps": 1028,
        "ulcerative-colitis-grade-0-1": 35,
        "ulcerative-colitis-grade-1": 201,
        "ulcerative-colitis-grade-1-2": 11,
        "ulcerative-colitis-grade-2": 443,
        "ulcerative-colitis-grade-2-3": 28,
        "ulcerative-colitis-grade-3": 133,
    },
    "lower-gi-tract/quality-of-mucosal-views": {
        "bbps-0-1": 646,
        "bbps-2-3": 1148,
        "impacted-stool": 131,
    },
    "lower-gi-tract/therapeutic-interventions": {
        "dyed-lifted-polyps": 1002,
        "dyed-resection-margins": 989,
    },
    "upper-gi-tract/anatomical-landmarks": {
        "pylorus": 999,
        "retroflex-stomach": 764,
        "z-line": 932,
    },
    "upper-gi-tract/pathological-findings": {
        "barretts": 41,
        "barretts-short-segment": 53,
        "esophagitis-a": 403,
        "esophagitis-b-d": 260,
    },
}
"""Published images of each class, by folder."""

CLASS_COUNTS = dict(sorted(pair for counts in FOLDERS.values() for pair in counts.items()))
"""Published images of each class; the order of the class indices is that of the names."""

NUM_FOLDS = 5

_ARCHIVE = "hyper-kvasir-labeled-images.zip"

CARD = DataCard(
    title="HyperKvasir, labelled images of the gut",
    source="https://datasets.simula.no/hyper-kvasir",
    licence="CC BY 4.0",
    citation=("Borgli et al., Sci. Data 7:283, 2020",),
    class_counts=CLASS_COUNTS,
    downloads=(
        Download(
            url=f"https://datasets.simula.no/downloads/hyper-kvasir/{_ARCHIVE}",
            path=f"hyperkvasir/{_ARCHIVE}",
            unpack="hyperkvasir",
        ),
    ),
)


class HyperKvasirConfig(ImageFilesConfig):
    """HyperKvasir's labelled images: 23 classes, one hospital."""

    name: Literal["hyperkvasir"] = "hyperkvasir"
    """Selects this data set."""
    root: str = "${FEDKD_DATA}/hyperkvasir/labeled-images"
    """The unpacked archive's folder with ``image-labels.csv``, ``lower-gi-tract`` and
    ``upper-gi-tract``; variables are filled in."""
    fold: int = Field(1, ge=1, le=NUM_FOLDS)
    """Which of the five folds is test, 1..5."""
    fraction_val: float = Field(0.1, gt=0, lt=1 - 1 / NUM_FOLDS)
    """Share of all images of a class that becomes val, drawn from those that are not test, above 0
    and below 0.8."""


def load(config: HyperKvasirConfig, cache_dir: Path | None = None) -> Splits:
    """Train, val and test (the fold), one site, 23 classes, rows by file name.

    Args:
        config: Where the images are and which fold is test.
        cache_dir: Where to keep the decoded images; by default the user's cache.

    Raises:
        ConfigError: A variable in the path is not set.
        DataError: A class folder, the table or its column is missing; a file without row or a row
            without file; a split without images; or what :func:`fedkd.data.sets.folder.load` finds.
    """
    root = open_folder(config.root, "data.root")
    csv = root / "image-labels.csv"
    content = read_bytes(csv, "the table in data.root")
    names = read_table(csv, content, {"name": "Video file"}, have_keys=False)["name"]
    problems = Problems(csv)
    table = _find_images(root, names, problems)
    table["split"] = _split(table, config)
    check_table(table, SPLITS, (), require_all_sites=False, problems=problems)
    splits = load_images(
        config,
        table,
        root,
        {name: name for name in CLASS_COUNTS},
        key=config.cache_key("root"),
        content=content,
        problems=problems,
        cache_dir=cache_dir,
    )
    return dataclasses.replace(splits, bounds=BOUNDS)


def _find_images(root: Path, names: "pd.Series[str]", problems: Problems) -> pd.DataFrame:
    """Columns id (path in the root) and label, by file name; the index is the row of the CSV."""
    known = {f"{place}/{name}" for place, counts in FOLDERS.items() for name in counts}
    there = {
        folder.relative_to(root).as_posix() for folder in root.glob("*/*/*/") if folder.is_dir()
    }
    for which, folders in (("lacks", known - there), ("has", there - known)):
        if folders:
            what = "class folders" if which == "lacks" else "folders of no class"
            raise DataError(
                f"data.root is {root}, which {which} {len(folders)} {what}: "
                f"{', '.join(sorted(folders))}; unpack {_ARCHIVE} anew"
            )
    files = sorted(
        (file for folder in known for file in (root / folder).iterdir() if file.is_file()),
        key=lambda file: file.name,
    )
    names_twice = names[names.duplicated()]
    problems.add("name the same image twice", shown(names_twice), "each may stand there once")
    absent = names[~names.isin({file.stem for file in files})]
    problems.add("name an image that is in no class folder", shown(absent), "copy the files again")
    rows = dict(zip(names, names.index, strict=True))
    unnamed = [file for file in files if file.stem not in rows]
    twice = [file for file, last in zip(files[1:], files, strict=False) if file.stem == last.stem]
    for found, what in ((unnamed, "no row"), (twice, "the name of another one")):
        if found:
            named = first_of([file.relative_to(root).as_posix() for file in found])
            problems.add_line(
                f"{len(found)} file(s) in class folders have {what}: {named}; unpack "
                f"{_ARCHIVE} anew"
            )
    problems.raise_if_any()
    return pd.DataFrame(
        {
            "id": [file.relative_to(root).as_posix() for file in files],
            "label": [file.parent.name for file in files],
        },
        index=pd.Index([rows[file.stem] for file in files]),
    )


def _split(table: pd.DataFrame, config: HyperKvasirConfig) -> "pd.Series[str]":
    """Test is the fold; val is drawn from the others, the same share of each class."""
    stream = rng(0, "hyperkvasir folds")
    fold = np.zeros(len(table), np.int64)
    dealt = 0
    for label in CLASS_COUNTS:
        rows = np.flatnonzero(table["label"] == label)
        # Dealing goes on where the last class ended, so that folds differ by one image at most.
        fold[stream.permutation(rows)] = (dealt + np.arange(len(rows))) % NUM_FOLDS + 1
        dealt += len(rows)
    rest = table[fold != config.fold]
    drawn = draw_split(
        rest,
        f"hyperkvasir fold {config.fold}",
        fraction_val=config.fraction_val / (1 - 1 / NUM_FOLDS),
        fraction_test=0,
    )
    return pd.Series("test", index=table.index).where(fold == config.fold, drawn)
