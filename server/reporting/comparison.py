"""A comparison's folder, as its report reads it: the outcome and its statistics."""

import logging
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from server.comparison.image_bootstrap import stored_predictions
from server.comparison.outcome import RECORD, Outcome
from server.comparison.statistics import Statistics, analyse

logger = logging.getLogger(__name__)


def is_comparison(folder: Path) -> bool:
    """Whether the folder is one that ``fedkd compare`` wrote."""
    return (folder / RECORD).is_file()


def statistics_of(outcome: Outcome, folder: Path) -> Statistics:
    """What the finished cells show; intervals over test images are by their stored predictions."""
    logger.info("statistics of %d cells ...", len(outcome.cells))

    def tail(run: str) -> Collection[str]:
        classes = pd.read_csv(folder / run / "per_class.csv", dtype={"class": str})
        return list(classes.loc[classes["group"] == "tail", "class"])

    return analyse(
        outcome.cells,
        outcome.reference,
        outcome.recipe["compare"]["test"],
        predictions=stored_predictions(folder),
        tail=tail,
    )


def label(setting: str, arm: str) -> str:
    """Name of an arm in its setting."""
    return ", ".join(filter(None, [setting, arm]))
