"""What a comparison has come to: a row per cell, gathered from the run directories."""

import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from fedkd import files
from fedkd.errors import ConfigError
from fedkd.recipe import Recipe
from server.comparison.plan import Cell, Plan
from server.comparison.runner import finished_runs
from server.comparison.training import error_file
from server.failures import listed
from server.results import VERSIONS

CELLS = "cells"
"""Folder of the run directories in the comparison's folder."""
TABLE, RECORD = "comparison.csv", "comparison.json"
METRICS = (
    "balanced_accuracy",
    "mcc",
    "macro_f1",
    "kappa",
    "macro_auroc",
    "recall_head",
    "recall_medium",
    "recall_tail",
    "worst_site_balanced_accuracy",
    "site_sd_balanced_accuracy",
    "ece",
    "accuracy",
)
"""Of the test split, by the student of the round that was best on val."""
COSTS = ("megabytes_down", "megabytes_up", "client_seconds", "seconds", "num_seen")
"""Sums over rounds (and clients); 1 megabyte is 10^6 bytes."""
NUMBERS = (*METRICS, "best_round", "val_balanced_accuracy", *COSTS)
COLUMNS = ("setting", "arm", "seed", "status", "error", "run", *NUMBERS)
_SKEWS_CLASSES = ("dirichlet", "pathological", "shards", "by_site_dirichlet")
_DECIDES_INITIAL = ("student", "teacher", "objective", "data")


@dataclass(frozen=True)
class Outcome:
    """The scores of a comparison, as far as there are any.

    Attributes:
        name: Of the comparison's recipe.
        reference: Label of the arm that others are set against.
        cells: A row per cell in the order of the plan, with :data:`COLUMNS`: ``status`` is
            finished, failed or missing; ``error`` one line; ``run`` the run directory relative to
            the comparison's folder; numbers are nan where there are none.
        notes: What a reader must know, such as cells that are not paired as they should be.
        recipe: Values of the comparison's recipe.
        versions: Of Python and packages.
        metrics: Names of the columns that are compared.
    """

    name: str
    reference: str
    cells: pd.DataFrame
    notes: tuple[str, ...]
    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    metrics: tuple[str, ...] = field(default=METRICS)

    def write(self, folder: Path) -> list[Path]:
        """Write ``comparison.csv`` and ``comparison.json``; returns their paths."""
        record = {
            "name": self.name,
            "reference": self.reference,
            "metrics": list(self.metrics),
            "notes": list(self.notes),
            "versions": dict(self.versions),
            "cells": [
                {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
                for row in self.cells.to_dict("records")
            ],
            "recipe": dict(self.recipe),
        }
        paths = [folder / TABLE, folder / RECORD]
        try:
            with files.replacing(paths[0]) as part:
                self.cells.to_csv(part, index=False)
            with files.replacing(paths[1]) as part:
                part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"cannot write the tables in {folder}: {error}; mend it and start the same command "
                "again, finished cells are kept"
            ) from None
        return paths

    @classmethod
    def load(cls, folder: Path) -> "Outcome":
        """Read what :meth:`write` wrote, bit for bit.

        Raises:
            ConfigError: The folder holds no comparison, or a damaged one.
        """
        path = folder / RECORD
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            for cell in record["cells"]:
                if not (folder / cell["run"]).resolve().is_relative_to(folder.resolve()):
                    raise ValueError(f"the run {cell['run']!r} leads out of the folder")
            return cls(
                name=record["name"],
                reference=record["reference"],
                cells=_frame(record["cells"]),
                notes=tuple(record["notes"]),
                recipe=record["recipe"],
                versions=record["versions"],
                metrics=tuple(record["metrics"]),
            )
        except FileNotFoundError:
            raise ConfigError(
                f"{folder} is no comparison, as it has no {RECORD}; `fedkd compare` prints the "
                "folder that it writes"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} is damaged ({type(error).__name__}: {error}); the same `fedkd compare` "
                "writes it anew from the finished runs"
            ) from None


def gather(recipe: Recipe, plan: Plan, folder: Path) -> Outcome:
    """Collect all cells from the comparison's folder.

    Args:
        recipe: Of the comparison.
        plan: Its cells.
        folder: ``<output>/<name>``.
    """
    runs = finished_runs(folder / CELLS)
    rows, summaries = [], []
    for cell in plan.cells:
        row: dict[str, Any] = {"setting": cell.setting, "arm": cell.arm, "seed": cell.seed}
        path = runs.get(cell.key)
        if path is not None:
            summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
            summaries.append((cell, summary))
            place = path.relative_to(folder).as_posix()
            row |= {"status": "finished", "error": "", "run": place, **_numbers(path, summary)}
        else:
            error = _error(error_file(cell, folder / CELLS))
            row |= {"status": "failed" if error else "missing", "error": error, "run": ""}
        rows.append(row)
    versions = {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}}
    values = recipe.model_dump(mode="json", exclude_none=True)
    notes = (*_unpaired(summaries), *_left_out(summaries), *_told_of_labels(plan.cells))
    return Outcome(recipe.name, plan.reference, _frame(rows), notes, values, versions)


def _frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype(dict.fromkeys(NUMBERS, "float64"))


def _error(path: Path) -> str:
    """The first line of a failed cell's file; "" if there is none."""
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0]
    except OSError:
        return ""


def _numbers(path: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    test = summary["test"]
    scores = {**test, **{f"recall_{group}": value for group, value in test["recall"].items()}}
    rounds, clients = (pd.read_csv(path / f"{name}.csv") for name in ("rounds", "clients"))
    return {
        **{name: scores.get(name) for name in METRICS},
        "best_round": summary["best_round"],
        "val_balanced_accuracy": summary["val"]["balanced_accuracy"],
        "megabytes_down": rounds["bytes_down"].sum() / 1e6,
        "megabytes_up": rounds["bytes_up"].sum() / 1e6,
        "client_seconds": clients["seconds"].sum(),
        "seconds": summary["seconds"],
        "num_seen": rounds["num_seen"].sum(),
    }


def _told_of_labels(cells: Iterable[Cell]) -> list[str]:
    """Arms whose test images reach a hospital's own student by what class they are of."""
    arms: dict[str, dict[str, None]] = {}
    for cell in cells:
        name = cell.recipe.partition.name
        travels = cell.recipe.strategy.exchange in ("all", "without_projector")
        if cell.mode == "federated" and not travels and name in _SKEWS_CLASSES:
            arms.setdefault(name, {})[cell.arm] = None
    return [
        f"NOT THE SAME TASK: with partition {name}, val and test images are dealt to hospitals by "
        f"their class, like the training images, and {', '.join(found)} predicts each by its "
        "hospital's own student, which is told by this which classes it may be of; no other arm "
        "is, so that a lead says nothing"
        for name, found in arms.items()
    ]


def _left_out(summaries: Sequence[tuple[Cell, Mapping[str, Any]]]) -> list[str]:
    """Cells whose rounds went on without clients that failed; a retry that helped is no matter."""
    return [
        f"NOT ALL CLIENTS: {cell.setting + ', ' if cell.setting else ''}{cell.arm}, seed "
        f"{cell.seed} went on without {', '.join(failed['clients'])} in some rounds, as "
        f"{failed['num_failed']} of their answers failed (failures.policy = 'continue')"
        + (
            f"; too few were left in {listed(kept)}, which kept the student as it was"
            if kept
            else ""
        )
        for cell, summary in summaries
        if (failed := summary.get("failures")) and failed["policy"] == "continue"
        for kept in [failed.get("kept_rounds")]
    ]


def _unpaired(summaries: Sequence[tuple[Cell, Mapping[str, Any]]]) -> list[str]:
    """What differs between cells of one setting and seed that should be the same.

    That is the division of the images, but for ``pooled``; and the initial student, among cells
    whose recipes have the same student, teacher, objective and data.
    """
    divided: dict[Any, dict[str, list[str]]] = {}
    initial: dict[Any, dict[str, list[str]]] = {}
    for cell, summary in summaries:
        place = (cell.setting, cell.seed)
        if cell.mode == "federated":
            found = divided.setdefault(place, {})
            found.setdefault(summary["partition_hash"], []).append(cell.arm)
        values = cell.recipe.model_dump(mode="json")
        decisive = json.dumps([values[key] for key in _DECIDES_INITIAL])
        found = initial.setdefault((*place, decisive), {})
        found.setdefault(summary.get("initial_student_sha256", ""), []).append(cell.arm)
    notes = []
    for what, places in (("divisions of the images", divided), ("initial students", initial)):
        for (setting, seed, *_), found in places.items():
            if len(found) > 1:
                arms = "; ".join(", ".join(names) for names in found.values())
                where = f"{setting + ', ' if setting else ''}seed {seed}"
                notes.append(
                    f"NOT PAIRED: {where} has {len(found)} different {what} ({arms}); differences "
                    "between these arms are not those of the method alone"
                )
    return notes
