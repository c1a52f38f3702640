"""The data set ``fed_isic2019``: ISIC 2019 at the six centres that acquired it.

The lists ``{train,val}_flamby_isic_fl_{center}_{fold}.csv`` with the columns image_name and dx come
from the repository of Fed-MAS (Elbatel et al., DeCaF @ MICCAI 2023, github.com/xmed-lab/Fed-MAS,
``data/Flamby_isic``); the centres are those of FLamby (Ogier du Terrail et al., "FLamby: Datasets
and Benchmarks for Cross-Silo Federated Learning in Realistic Healthcare Settings", NeurIPS 2022).
Images and licence: :mod:`fedkd.data.sets.isic_lists`. Images of the lists of fold 1:

| centre | acquired as | train + val | test |
|---|---|---|---|
| 0 | | 9930 | 2483 |
| 1 | vidir_molemax | 3163 | 791 |
| 2 | vidir_modern | 2691 | 672 |
| 3 | rosendahl | 1807 | 452 |
| 4 | | 655 | 164 |
| 5 | vienna_dias | 351 | 88 |

Fed-MAS selected its student on the lists named "val" and reported its score on the same lists. Here
**they are the test set**, and a val split of fedkd's own is carved out of the lists named "train":
a fraction of every class of every centre, drawn from a fixed stream (not from the recipe's seed, so
that runs with other seeds see the same splits), and by lesion where ``metadata`` names lesions.

FLamby's own table ``train_test_split`` (github.com/owkin/FLamby, ``fed_isic2019/
dataset_creation_scripts``; columns image, MEL ... UNK, target, center, fold, fold2) will do instead
of the lists (``split_csv``). Its fold says train or test; rows that we compared have the split and
the centre of the lists of fold 1, in another order.

The lists themselves do not keep images of a lesion together. Of the lesions that HAM10000's
metadata knows, 696 are in both kinds of list, and 760 of the 2003 test images of centres 1, 2, 3
and 5 show one of them. That is in every figure published on these lists, and it is in fedkd's test
figures too; with ``metadata`` the log says how many.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field, field_validator

from fedkd import paths
from fedkd.data.card import DataCard
from fedkd.data.image_table import Problems, read_table, shown
from fedkd.data.images import Integers, Splits
from fedkd.data.labelled_files import open_folder, read_bytes
from fedkd.data.sets import isic_cards
from fedkd.data.sets.isic_lists import CLASS_NAMES, IsicConfig, load_lists, read_lists
from fedkd.data.splitting import carve
from fedkd.errors import DataError
from fedkd.seeding import rng

logger = logging.getLogger(__name__)

SITES = (
    "center-0",
    "center-1-vidir_molemax",
    "center-2-vidir_modern",
    "center-3-rosendahl",
    "center-4",
    "center-5-vienna_dias",
)
"""Site name of each centre, with the source that HAM10000 gives for all its images, if it does."""

_SEED = 0

CARD = isic_cards.FED_ISIC2019


class FedIsic2019Config(IsicConfig):
    """Fed-ISIC2019: up to six hospitals, 8 classes, the Fed-MAS authors' lists."""

    name: Literal["fed_isic2019"] = "fed_isic2019"
    """Selects this data set."""
    lists: str = "${FEDKD_DATA}/splits/fed_isic2019"
    """Folder of the Fed-MAS authors' CSVs; variables are filled in."""
    split_csv: str | None = None
    """FLamby's table ``train_test_split``; variables are filled in. With it ``lists`` is not read,
    and ``fold`` only names the draw of val."""
    centers: tuple[int, ...] = tuple(range(len(SITES)))
    """Centres to use, 0..5; the others are left out."""
    fraction_val: float = Field(0.1, gt=0, lt=1)
    """Fraction of the training images, by centre and class, that becomes val, between 0 and 1.
    The lists named "val" are the test set."""
    metadata: str | None = None
    """CSV that says which lesion an image shows (``lesion_id``), to keep images of one lesion
    together when val is carved out; variables are filled in. ISIC 2019's own is
    ``ISIC_2019_Training_Metadata.csv``. Without it every image counts as a lesion of its own."""
    metadata_id_column: str = "image"
    """Column of the images' names in ``metadata``: ``image`` in ISIC 2019's, ``image_id`` in
    HAM10000's."""

    @field_validator("centers")
    @classmethod
    def _are_centers(cls, centers: tuple[int, ...]) -> tuple[int, ...]:
        known = set(range(len(SITES)))
        if not centers or not set(centers) <= known or len(set(centers)) < len(centers):
            raise ValueError(
                f"{list(centers)} is no choice of centres; name one or more of 0, 1, 2, 3, 4, 5, "
                "each once"
            )
        return tuple(sorted(centers))


def card_for(config: FedIsic2019Config) -> DataCard:
    """What is published about the chosen centres; of the lists there are counts of fold 1 only.

    FLamby's table holds the same images at the same centres.
    """
    card = CARD if config.split_csv is None else replace(CARD, downloads=())
    if config.fold != 1 and config.split_csv is None:
        return card
    counts = {center: isic_cards.CENTER_COUNTS[center] for center in config.centers}
    by_class = [sum(own) for own in zip(*counts.values(), strict=True)]
    return replace(
        card,
        class_counts=dict(zip(CLASS_NAMES, by_class, strict=True)),
        site_counts={SITES[center]: sum(own) for center, own in counts.items()},
    )


def load(config: FedIsic2019Config, cache_dir: Path | None = None) -> Splits:
    """Train, val (carved out of the authors' train) and test (their "val"), one site per centre.

    An image's split does not depend on which images are there.

    Args:
        config: Where images and lists are, and which centres to use.
        cache_dir: Where to keep the decoded images; by default the user's cache.

    Raises:
        ConfigError: A variable in a path is not set.
        DataError: A list, a column or images are missing, a row is wrong, or val gets no image;
            see :func:`fedkd.data.sets.isic_lists.load_lists`.
    """
    table, content, source = (
        _read_split_csv(config.split_csv, config.centers)
        if config.split_csv is not None
        else _read_lists(config)
    )
    train = (table["split"] == "train").to_numpy()
    lesions = pd.Series("", index=table.index)
    if config.metadata is not None:
        known, more = _read_lesions(config.metadata, config.metadata_id_column)
        lesions = pd.Series([known.get(name, "") for name in table["id"]], table.index)
        content += more
        _log_lesions(lesions, train)
    val = _carve(table[train], lesions[train], config)
    table.loc[table.index[train][val], "split"] = "val"
    table["group"] = lesions
    return load_lists(
        config,
        table,
        CLASS_NAMES,
        content,
        source,
        remedy=", leave centres out (data.centers)",
        cache_dir=cache_dir,
    )


def _read_lists(config: FedIsic2019Config) -> tuple[pd.DataFrame, bytes, Path]:
    """The chosen centres' lists as one table, their contents, and where they were."""
    folder = open_folder(config.lists, "data.lists")
    lists = {
        f"{kind}_flamby_isic_fl_{center}_{config.fold}.csv": {"split": split, "site": SITES[center]}
        for center in config.centers
        for kind, split in (("train", "train"), ("val", "test"))
    }
    return *read_lists(folder, lists, {"id": "image_name", "label": "dx"}), folder


def _read_split_csv(text: str, centers: tuple[int, ...]) -> tuple[pd.DataFrame, bytes, Path]:
    """The chosen centres' rows of FLamby's table, its content, and where it was."""
    csv = paths.expand(text, "data.split_csv")
    content = read_bytes(csv, "data.split_csv")
    columns = {"id": "image", "label": "target", "site": "center", "split": "fold"}
    table = read_table(csv, content, columns, have_keys=False)
    problems = Problems(csv)
    numbers = [str(center) for center in range(len(SITES))]
    for column, allowed in (("site", numbers), ("split", ["train", "test"])):
        wrong = table.loc[~table[column].isin(allowed), column]
        problems.add(
            f"have an unknown {columns[column]}", shown(wrong), f"allowed are {', '.join(allowed)}"
        )
    problems.raise_if_any()
    table = table[table["site"].isin([str(center) for center in centers])]
    if table.empty:
        raise DataError(f"{csv} has no row of data.centers {list(centers)}")
    return (
        table.assign(site=table["site"].map(dict(zip(numbers, SITES, strict=True)))),
        content,
        csv,
    )


def _read_lesions(metadata: str, id_column: str) -> tuple[dict[str, str], bytes]:
    """Lesion of each image by its name, "" for none, and the file's content."""
    csv = paths.expand(metadata, "data.metadata")
    content = read_bytes(csv, "data.metadata")
    table = read_table(csv, content, {"id": id_column, "lesion": "lesion_id"}, have_keys=False)
    problems = Problems(csv)
    twice = table.loc[table["id"].duplicated(), "id"]
    problems.add("name the same image twice", shown(twice), "each image may stand there once")
    problems.raise_if_any()
    return dict(zip(table["id"], table["lesion"], strict=True)), content


def _log_lesions(lesions: "pd.Series[str]", train: npt.NDArray[np.bool_]) -> None:
    known, test = lesions[train][lesions[train] != ""], lesions[~train]
    logger.info(
        "lesions are known of %d of %d training images; %d of %d test images show one of them "
        "(the lists do not keep lesions together)",
        len(known), train.sum(), test.isin(set(known)).sum(), len(test),
    )  # fmt: skip


def _carve(train: pd.DataFrame, lesions: "pd.Series[str]", config: FedIsic2019Config) -> Integers:
    """Positions in ``train`` of the images that become val, increasing."""
    streams = {
        SITES[center]: rng(_SEED, "fed_isic2019 val", config.fold, center)
        for center in config.centers
    }
    val = carve(train.assign(group=lesions), config.fraction_val, streams)
    if not len(val):
        raise DataError(
            f"data.fraction_val is {config.fraction_val:g}, which makes no val image of "
            f"{len(train)} training images; raise it"
        )
    return val
