"""The data set ``isic2019_lt``: ISIC 2019 made long-tailed, by the split files of FoPro-KD.

The lists ``{train,val,test}_skin{fold}_{0.01|0.005|0.002}.csv`` with the columns image,
finding_name and finding come from the repository of FoPro-KD (Elbatel et al., IEEE TMI 2024, arXiv
2305.17421); images and licence: :mod:`fedkd.data.sets.isic_lists`. Val has 50 and test 100 images
per class, and no image is in two lists. Training images per class in split 1, from NV to DF:

| factor | realised | NV, MEL, BCC, BKL, AK, SCC, VASC, DF |
|---|---|---|
| 0.01 | 143:1 | 12725, 4372, 3173, 1788, 717, 478, 103, 89 |
| 0.005 | 199:1 | 12725, 4372, 2833, 1329, 623, 292, 103, 64 |
| 0.002 | 509:1 | 12725, 4372, 2180, 897, 369, 152, 62, 25 |

What the labels mean is nowhere written in the lists. ``finding`` ranks the classes by their number
of images in ISIC 2019, and ``finding_name`` is their number in the challenge's order: over the
three lists of factor 0.01 each class but BKL has exactly the challenge's count, each image that is
in the Fed-MAS lists too has the same class there, and each that is in HAM10000 its diagnosis (tests
show all three).

The lists do not keep images of a lesion together: of the lesions that HAM10000's metadata knows,
85 to 114 in train are in test too, depending on the factor (split 1). They are used as published.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from fedkd.data.card import DataCard
from fedkd.data.images import SPLITS, Splits
from fedkd.data.labelled_files import open_folder
from fedkd.data.sets import isic_cards
from fedkd.data.sets.isic_lists import IsicConfig, load_lists, read_lists

IMBALANCE_FACTORS = (0.01, 0.005, 0.002)
"""Smallest over largest class, as in the names of the lists."""

CLASS_NAMES = ("NV", "MEL", "BCC", "BKL", "AK", "SCC", "VASC", "DF")
"""Classes in the order of ``finding``, from head to tail."""

CARD = isic_cards.ISIC_LT


class Isic2019LtConfig(IsicConfig):
    """ISIC-LT: one hospital, 8 classes, the FoPro-KD authors' splits."""

    name: Literal["isic2019_lt"] = "isic2019_lt"
    """Selects this data set."""
    lists: str = "${FEDKD_DATA}/splits/isic_lt"
    """Folder of the authors' CSVs; variables are filled in."""
    imbalance_factor: float = 0.01
    """Which of the authors' lists: 0.01 (1:100), 0.005 (1:200) or 0.002 (1:500), the smallest
    class over the largest. The realised ratios of split 1 are 1:143, 1:199 and 1:509."""

    @field_validator("imbalance_factor")
    @classmethod
    def _is_one_of_theirs(cls, factor: float) -> float:
        if factor not in IMBALANCE_FACTORS:
            raise ValueError(
                f"{factor:g} has no lists; it must be 0.01 (1:100), 0.005 (1:200) or 0.002 (1:500)"
            )
        return factor


def card_for(config: Isic2019LtConfig) -> DataCard:
    """What is published about the chosen lists; counts of fold 1 only."""
    if config.fold != 1:
        return CARD
    counts = isic_cards.LT_COUNTS[config.imbalance_factor]
    return replace(CARD, class_counts=dict(zip(CLASS_NAMES, counts, strict=True)))


def load(config: Isic2019LtConfig, cache_dir: Path | None = None) -> Splits:
    """Train, val and test as the authors' lists have them, one site, 8 classes.

    Args:
        config: Where images and lists are.
        cache_dir: Where to keep the decoded images; by default the user's cache.

    Raises:
        ConfigError: A variable in a path is not set.
        DataError: A list, a column or images are missing, or a row is wrong; see
            :func:`fedkd.data.sets.isic_lists.load_lists`.
    """
    lists = {
        f"{split}_skin{config.fold}_{config.imbalance_factor:g}.csv": {"split": split}
        for split in SPLITS
    }
    folder = open_folder(config.lists, "data.lists")
    table, content = read_lists(folder, lists, {"id": "image", "label": "finding"})
    return load_lists(config, table, CLASS_NAMES, content, folder, cache_dir=cache_dir)
