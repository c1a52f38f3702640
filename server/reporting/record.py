"""What a run directory tells about its run: the numbers that a report shows, without its images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from fedkd.data.images import Integers
from fedkd.errors import DataError, first_of
from fedkd.metrics import confusion_matrix
from fedkd.recipe import Recipe
from server.opened_run import OpenedRun, open_run

_WHOLE = ("round", "partition_id", "num_clients", "num_failed", "num_seen", "num_examples")
"""Columns of whole numbers, of which none is missing."""
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
        path = self.path / "per_class.csv"
        if not self.is_finished:
            return pd.DataFrame()
        numbers = ("num_train", "num_val", "num_test", "val_recall", "test_recall")
        table = _read(path, ("class", "group"), numbers)
        if list(table["class"]) != self.class_names:
            raise _damaged(
                path, f"its classes are not {first_of(self.class_names)} of summary.json"
            )
        return table

    @cached_property
    def failures(self) -> pd.DataFrame:
        """A row per message to a client that failed; no column if there was none."""
        path = self.path / "failures.csv"
        return _read(path, ("client",)) if path.is_file() else pd.DataFrame()

    @cached_property
    def counts(self) -> Integers:
        """Training images, int64 (num_clients, num_classes)."""
        path = self.path / "partition.csv"
        names = (*self.class_names, "total")
        table = _read(path, ("client",), names)
        if list(table["client"]) != self.summary["clients"] or list(table) != ["client", *names]:
            raise _damaged(path, "its clients or classes are not those of summary.json")
        counts = table[list(names)].to_numpy(np.float64)
        if not np.isfinite(counts).all() or (counts < 0).any() or (counts % 1).any():
            raise _damaged(path, "its counts must be whole numbers from 0 on")
        return counts[:, :-1].astype(np.int64)

    def confusion_by_site(self) -> dict[str, Integers]:
        """Confusion matrix of the test images of each hospital that has some."""
        path = self.path / "predictions_test.csv"
        if not path.is_file():
            return {}
        table = _read(path, ("site", "label", "prediction"), ())
        place = {name: number for number, name in enumerate(self.class_names)}
        classes = table[["label", "prediction"]]
        unknown = ~classes.isin(self.class_names).all(axis=1)
        if unknown.any():
            rows = [str(row + 2) for row in np.flatnonzero(unknown)]
            raise _damaged(path, f"rows {first_of(rows)} have a label or prediction of no class")
        labels, predictions = (classes[name].map(place).to_numpy(np.int64) for name in classes)
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
    score = f"val_{run.recipe.evaluation.select_on}"
    counts = ("num_seen", "weight", "seconds")
    rounds = _read_rows(path / "rounds.csv", (), ("round", score, "seconds"))
    clients = _read_rows(path / "clients.csv", ("client",), ("round", "partition_id", *counts))
    travelled = {"bytes_down", "bytes_up"}  # Older runs noted neither.
    if len(rounds) and len(clients) and (noted := travelled & {*rounds, *clients}):
        for name, table in (("rounds.csv", rounds), ("clients.csv", clients)):
            if lacking := sorted(travelled - {*table}):
                raise _damaged(
                    path / name, f"it has no column {first_of(lacking)}, but {min(noted)} is noted"
                )
    if "partition_id" in clients:
        known = clients["partition_id"].isin(range(len(run.summary["clients"])))
        if not known.all():
            seen = [str(number) for number in clients.loc[~known, "partition_id"].unique()]
            raise _damaged(
                path / "clients.csv", f"it has the unknown partition_id {first_of(seen)}"
            )
    return Record(run, rounds, clients)


def _read_rows(path: Path, texts: Sequence[str], numbers: Sequence[str]) -> pd.DataFrame:
    """A table to which every round adds rows; empty before the first round."""
    if not path.is_file() or not path.stat().st_size:
        return pd.DataFrame()
    table = _read(path, texts, numbers)
    bad = [str(name) for name in table if name not in _TEXTS and not is_numeric_dtype(table[name])]
    bad += [
        name
        for name in _WHOLE
        if name in table and name not in bad and ((table[name] % 1) != 0).any()
    ]
    if bad:
        raise _damaged(path, f"{first_of(bad)} must hold numbers, and counts whole ones")
    return table


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path} is damaged: {what}; copy the run directory again, or run it again")


def _read(path: Path, texts: Sequence[str] = (), numbers: Sequence[str] = ()) -> pd.DataFrame:
    """A table of the run directory; names are texts, "NA" too.

    Raises:
        DataError: It cannot be read, lacks one of these columns, or has no numbers in those.
    """
    try:
        table = pd.read_csv(
            path, dtype=dict.fromkeys(_TEXTS, str), keep_default_na=False, na_values=[""]
        )
    except (OSError, ValueError) as error:
        why = str(error).strip().partition("\n")[0]
        raise DataError(f"cannot read the table {path}: {why}; run it again") from None
    if lacking := [name for name in (*texts, *numbers) if name not in table]:
        raise _damaged(path, f"it has no column {first_of(lacking)}")
    if bad := [name for name in numbers if not is_numeric_dtype(table[name])]:
        raise _damaged(path, f"{first_of(bad)} must hold numbers")
    return table.fillna({name: "" for name in _TEXTS if name in table})
