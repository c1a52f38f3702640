"""The results of benchmarks/ablation.py as a CSV: a row per cell."""

from pathlib import Path

import pandas as pd

METRICS = ("balanced_accuracy", "mcc", "recall_tail")
COLUMNS = (
    "setting", "method", "teacher", "seed", "status", *METRICS, "val_balanced_accuracy",
    "best_round", "prior_clean", "prior", "mean_abs_log_gain", "magnitude", "seconds",
    "recipe_hash", "commit", "error",
)  # fmt: skip


def write_report(frame: pd.DataFrame, docs: Path) -> None:
    """Write the CSV."""
    frame.to_csv(docs / "results.csv", index=False)
