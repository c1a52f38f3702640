"""Tables that commands print on stdout."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.console import Console
from rich.table import Table

from fedkd.metrics import Evaluation, balanced_accuracy, mcc
from fedkd.partitions.divergence import label_divergence
from server.evaluation import own_confusion
from server.scoreboard import Scoreboard

METRICS = {
    "balanced_accuracy": "balanced accuracy",
    "mcc": "MCC",
    "macro_f1": "macro-F1",
    "kappa": "Cohen's kappa",
    "macro_auroc": "macro-AUROC",
    "accuracy": "accuracy",
}


def print_results(console: Console, board: Scoreboard) -> None:
    """Val and test side by side: metrics, recall of groups and classes, hospitals."""
    assert board.best_val is not None, "the run is not finished"
    assert board.test is not None, "the run is not finished"
    val, test = board.best_val, board.test
    table = Table(title=f"student of round {board.best_round}, best on val")
    table.add_column("")
    table.add_column(f"val ({val.num_images})", justify="right")
    table.add_column(f"test ({test.num_images})", justify="right")
    for key, name in METRICS.items():
        table.add_row(name, _number(getattr(val, key)), _number(getattr(test, key)))
    groups = board.experiment.groups()
    names = board.experiment.splits.train.class_names
    for group in val.recall:
        members = " ".join(names[c] for c in groups[group])
        table.add_row(f"recall {group} ({members})", *_pair(val, test, "recall", group))
    table.add_section()
    counts = board.experiment.splits.train.class_counts()
    for name, count in zip(names, counts, strict=True):
        label = f"recall {name} ({count} train)"
        table.add_row(label, *_pair(val, test, "recall_per_class", name))
    table.add_section()
    for site in test.balanced_accuracy_per_site:
        label = f"balanced accuracy at {site}"
        table.add_row(label, *_pair(val, test, "balanced_accuracy_per_site", site))
    table.add_row(
        "balanced accuracy of the worst hospital",
        f"{_number(val.worst_site_balanced_accuracy)} {val.worst_site}",
        f"{_number(test.worst_site_balanced_accuracy)} {test.worst_site}",
    )
    console.print(table)
    if board.best_own:
        console.print(_own_table(board))


def _own_table(board: Scoreboard) -> Table:
    """Each client's own student on its own part of val."""
    experiment = board.experiment
    table = Table(title="own students on their own val images")
    table.add_column("")
    for column in ("images", "balanced accuracy", "MCC"):
        table.add_column(column, justify="right")
    for number, probabilities in sorted(board.best_own.items()):
        confusion = own_confusion(experiment, number, probabilities)
        table.add_row(
            experiment.partition.client_names[number],
            str(len(probabilities)),
            _number(balanced_accuracy(confusion)),
            _number(mcc(confusion)),
        )
    return table


def print_partition(console: Console, table: pd.DataFrame) -> None:
    """Training images per client and class; absent classes as a dot."""
    shown = Table(title="training images")
    for column in table.columns:
        shown.add_column(str(column), justify="left" if column == "client" else "right")
    for _, row in table.iterrows():
        shown.add_row(*[str(value) if value != 0 else "·" for value in row])
    totals = table.drop(columns="client").sum()
    shown.add_section()
    shown.add_row("all", *[str(value) for value in totals])
    console.print(shown)
    sizes = sorted((int(count), str(name)) for name, count in totals.iloc[:-1].items() if count)
    if sizes:
        (small, smallest), (large, largest) = sizes[0], sizes[-1]
        console.print(
            f"largest : smallest class = {large} ({largest}) : {small} ({smallest}) = "
            f"{large / small:.4g} : 1",
            highlight=False,
            markup=False,
        )


def print_divergence(
    console: Console,
    counts: npt.NDArray[np.int64],
    client_names: Sequence[str],
    class_names: Sequence[str],
) -> None:
    """How far each client's classes are from those of all, and which it lacks.

    Args:
        console: Where to print.
        counts: Images, int64 (num_clients, num_classes).
        client_names: One name per client.
        class_names: One name per class.
    """
    names, present = np.asarray(class_names), counts.sum(axis=0) > 0
    shown = Table(title="classes of each client")
    shown.add_column("client")
    shown.add_column("divergence", justify="right")
    shown.add_column("classes without an image")
    for client, row, value in zip(client_names, counts, label_divergence(counts), strict=True):
        lacking = names[present & (row == 0)].tolist()
        shown.add_row(client, _number(float(value)), ", ".join(lacking) or "-")
    if not present.all():
        shown.add_section()
        shown.add_row("nobody has", "", ", ".join(names[~present].tolist()))
    console.print(shown)
    console.print(
        "divergence: Jensen-Shannon, in bits, of a client's label distribution from that of all\n"
        "images together; 0 = the same mix, 1 = nothing in common",
        highlight=False,
    )


def print_catalog(console: Console, parts: Mapping[str, Mapping[str, str]]) -> None:
    """Names with a line each, by kind."""
    for kind, entries in parts.items():
        console.print(f"[bold]{kind}[/bold]")
        width = max(len(name) for name in entries)
        for name, description in entries.items():
            console.print(f"  {name:<{width}}  {description}", highlight=False)


def _pair(val: Evaluation, test: Evaluation, attribute: str, key: str) -> Sequence[str]:
    values = [getattr(evaluation, attribute).get(key, math.nan) for evaluation in (val, test)]
    return [_number(value) for value in values]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
