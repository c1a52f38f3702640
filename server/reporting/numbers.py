"""The scores that a report shows, as numbers and as texts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from server import tables
from server.reporting.record import Record

METRICS = {
    **tables.METRICS,
    "recall_head": "recall of head classes",
    "recall_medium": "recall of medium classes",
    "recall_tail": "recall of tail classes",
    "worst_site_balanced_accuracy": "balanced accuracy of the worst hospital",
    "site_sd_balanced_accuracy": "sd of balanced accuracy over hospitals",
}
NOTHING = "–"


def scalars(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of ``summary["val"]`` or ``summary["test"]``; nan where it has none.

    The spread over hospitals is reckoned from their scores where an older run did not note it.
    """
    values = {
        **evaluation,
        **{f"recall_{group}": value for group, value in evaluation["recall"].items()},
    }
    sites = [v for v in evaluation["balanced_accuracy_per_site"].values() if v is not None]
    values.setdefault("site_sd_balanced_accuracy", float(np.std(sites)) if sites else None)
    return {name: _number(values.get(name)) for name in METRICS}


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def three(value: float) -> str:
    """Three decimals; a dash for what is undefined."""
    return NOTHING if math.isnan(value) else f"{value:.3f}"


def spread(values: Sequence[float]) -> str:
    """The value, or mean ± standard deviation (n - 1) of several; nan are left out."""
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2:
        return three(known[0]) if known else NOTHING
    return f"{np.mean(known):.3f} ± {np.std(known, ddof=1):.3f}"


def scores_table(records: Sequence[Record], labels: Sequence[str]) -> pd.DataFrame:
    """A row per finished run: which it is, and its metrics on val (chosen round) and test.

    Args:
        records: Any runs.
        labels: What tells each one's recipe from the others.
    """
    rows = []
    for record, label in zip(records, labels, strict=True):
        row: dict[str, Any] = {
            "recipe": label,
            "mode": record.summary["mode"],
            "seed": record.seed,
            "status": record.summary.get("status"),
            "config_hash": record.summary["config_hash"],
            "run": record.path.name,
        }
        if record.is_finished:
            row["best_round"] = record.summary["best_round"]
            for split in ("val", "test"):
                values = scalars(record.summary[split])
                row.update({f"{split}_{name}": value for name, value in values.items()})
        if "bytes_down" in record.rounds:
            row["megabytes_down"] = record.rounds["bytes_down"].sum() / 1e6
            row["megabytes_up"] = record.rounds["bytes_up"].sum() / 1e6
        if "seconds" in record.clients:
            row["client_seconds"] = record.clients["seconds"].sum()
            row["num_seen"] = int(record.clients["num_seen"].sum())
        row["seconds"] = record.summary.get("seconds")
        rows.append(row)
    return pd.DataFrame(rows)
