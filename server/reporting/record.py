"""What a run directory tells about its run: the numbers that a report shows, without its images."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedkd.data.images import Integers
from fedkd.errors import DataError
from fedkd.metrics import confusion_matrix
from fedkd.recipe import Recipe
from server.opened_run import OpenedRun, open_run

_TEXTS = ("client", "class", "group", "id", "site", "label", "prediction")


@dataclass(frozen=True)
class Record:
    """A run, finished or not.

    Attributes:
        run: Its directory, opened.
        rounds: A row per round so far; no column before the first.
        clients: A row per client and round so far.
    """

    run: OpenedRun
    rounds: pd.DataFrame
    clients: pd.DataFrame

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.run.path

    @property
    def recipe(self) -> Recipe:
        """The resolved config."""
        return self.run.recipe

    @property
    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` holds."""
        return self.run.summary

    @property
    def is_finished(self) -> bool:
        """Whether there are test scores."""
        return self.summary.get("status") == "finished" and "test" in self.summary

    @property
    def seed(self) -> int:
        """Of the recipe."""
        return self.recipe.seed

    @property
    def class_names(self) -> list[str]:
        """Of all classes, in order."""
        return list(self.summary["train_counts"])

    @cached_property
    def per_class(self) -> pd.DataFrame:
        """A row per class; no column if the run is not finished."""
        return _read(self.path / "per_class.csv")

    @cached_property
    def failures(self) -> pd.DataFrame:
        """A row per message to a client that failed; no column if there was none."""
        return _read(self.path / "failures.csv")

    @cached_property
    def counts(self) -> Integers:
        """Training images, int64 (num_clients, num_classes)."""
        table = _read(self.path / "partition.csv")
        return table.iloc[:, 1:-1].to_numpy(np.int64)

    def confusion_by_site(self) -> dict[str, Integers]:
        """Confusion matrix of the test images of each hospital that has some."""
        table = _read(self.path / "predictions_test.csv")
        if table.empty:
            return {}
        place = {name: number for number, name in enumerate(self.class_names)}
        labels, predictions = (
            table[name].map(place).to_numpy(np.int64) for name in ("label", "prediction")
        )
        sites = table["site"].to_numpy()
        return {
            name: confusion_matrix(labels[sites == name], predictions[sites == name], len(place))
            for name in self.summary["test"]["balanced_accuracy_per_site"]
            if (sites == name).any()
        }


def read_record(path: Path) -> Record:
    """Read a run directory.

    Raises:
        ConfigError: It is none.
        DataError: One of its tables is damaged.
    """
    run = open_run(path)
    return Record(run, _read(path / "rounds.csv"), _read(path / "clients.csv"))


def _read(path: Path) -> pd.DataFrame:
    """A table of the run directory, empty if there is none; names are texts, "NA" too."""
    if not path.is_file():
        return pd.DataFrame()
    try:
        table = pd.read_csv(
            path, dtype=dict.fromkeys(_TEXTS, str), keep_default_na=False, na_values=[""]
        )
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the table {path}: {error}; run it again") from None
    texts = [name for name in _TEXTS if name in table]
    return table.fillna(dict.fromkeys(texts, ""))
