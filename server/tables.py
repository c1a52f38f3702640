"""Tables that commands print on stdout."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from fedkd.experiment import Experiment
from fedkd.metrics import Evaluation, balanced_accuracy, mcc
from fedkd.partitions.divergence import label_divergence
from server.evaluation import own_confusion
from server.many_clients import MAX_CLIENTS, spread_of_clients
from server.scoreboard import Scoreboard

# Of a column of counts, beyond which its name is broken.
_HEADING_WIDTH = 14

METRICS = {
    "balanced_accuracy": "balanced accuracy",
    "mcc": "MCC",
    "macro_f1": "macro-F1",
    "kappa": "Cohen's kappa",
    "macro_auroc": "macro-AUROC",
    "accuracy": "accuracy",
    "ece": "calibration error (ECE)",
}


def print_results(console: Console, board: Scoreboard) -> None:
    """Val and test side by side: metrics, recall of groups and classes, hospitals."""
    assert board.best_val is not None, "the run is not finished"
    assert board.test is not None, "the run is not finished"
    val, test = board.best_val, board.test
    title = f"student of round {board.best_round}, best on val"
    print_evaluations(console, board.experiment, title, {"val": val, "test": test})
    if 0 < len(board.best_own) <= MAX_CLIENTS:
        console.print(_own_table(board))
    elif board.best_own:
        console.print(
            f"{len(board.best_own):,} clients' own students: see predictions_clients.csv and "
            "clients.csv",
            highlight=False,
        )


def print_evaluations(
    console: Console, experiment: Experiment, title: str, columns: Mapping[str, Evaluation]
) -> None:
    """Evaluations of one student side by side, by the names of their images."""
    found = list(columns.values())
    table = Table(title=title)
    if experiment.scored_by_neighbours:
        table.caption = "kNN scores: predicted by the nearest labelled val images, no classifier"
    table.add_column("")
    for name, scores in columns.items():
        table.add_column(f"{name} ({scores.num_images})", justify="right")
    for key, name in METRICS.items():
        table.add_row(name, *(_number(getattr(scores, key)) for scores in found))
    groups, names = experiment.groups(), experiment.splits.train.class_names
    for group, classes in groups.items():
        members = " ".join(names[c] for c in classes)
        table.add_row(f"recall {group} ({members})", *_cells(found, "recall", group))
    table.add_section()
    counts = experiment.splits.train.class_counts()
    for name, count in zip(names, counts, strict=True):
        label = f"recall {name} ({count} train)"
        table.add_row(label, *_cells(found, "recall_per_class", name))
    table.add_section()
    for site in found[-1].balanced_accuracy_per_site:
        label = f"balanced accuracy at {site}"
        table.add_row(label, *_cells(found, "balanced_accuracy_per_site", site))
    table.add_row(
        "balanced accuracy of the worst hospital",
        *(f"{_number(e.worst_site_balanced_accuracy)} {e.worst_site}" for e in found),
    )
    table.add_row(
        "spread over hospitals (sd)", *(_number(e.site_sd_balanced_accuracy) for e in found)
    )
    console.print(table)


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
    """Training images per client and class; absent classes as a dot.

    A row per client; where the classes do not fit side by side, a row per class, in as many tables
    as it takes to show all clients. Of more clients than ``MAX_CLIENTS`` only the spread.
    """
    counts = table.set_index("client")
    totals = counts.sum()
    many = len(counts) > MAX_CLIENTS
    above = spread_of_clients(counts) if many else counts
    counts = pd.concat([above, totals.to_frame("all").T])
    shown = _count_table(counts, f"of {len(table):,} clients" if many else "client")
    if _width(console, shown) <= console.width:
        console.print(shown)
    else:
        for shown in _class_tables(console, counts.T):
            console.print(shown)
    if many:
        console.print(f"partition.csv has each of the {len(table):,} clients", highlight=False)
    sizes = sorted((int(count), str(name)) for name, count in totals.iloc[:-1].items() if count)
    if sizes:
        (small, smallest), (large, largest) = sizes[0], sizes[-1]
        console.print(
            f"largest : smallest class = {large} ({largest}) : {small} ({smallest}) = "
            f"{large / small:.4g} : 1",
            highlight=False,
            markup=False,
        )


def _class_tables(console: Console, counts: pd.DataFrame) -> Iterator[Table]:
    """Tables with a row per class and as many clients as fit, at least one."""
    first = 0
    while first < counts.shape[1]:
        last = first + 1
        shown = _count_table(counts.iloc[:, first:last], "class")
        while last < counts.shape[1]:
            wider = _count_table(counts.iloc[:, first : last + 1], "class")
            if _width(console, wider) > console.width:
                break
            shown, last = wider, last + 1
        yield shown
        first = last


def _count_table(counts: pd.DataFrame, rows_are: str) -> Table:
    """Counts, the last row being a total; long headings are broken."""
    shown = Table(title="training images")
    shown.add_column(rows_are, overflow="fold")
    for name in counts.columns:
        shown.add_column(
            escape(str(name)), justify="right", overflow="fold", max_width=_HEADING_WIDTH
        )
    for number, (name, row) in enumerate(zip(counts.index, counts.to_numpy(), strict=True)):
        if number == len(counts) - 1:
            shown.add_section()
        shown.add_row(escape(str(name)), *[str(value) if value != 0 else "·" for value in row])
    return shown


def _width(console: Console, table: Table) -> int:
    """Characters that a table takes if nothing limits it."""
    return Measurement.get(console, console.options.update(max_width=100_000), table).maximum


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
    values = label_divergence(counts)
    # Of many clients those that differ most.
    order = np.argsort(-np.nan_to_num(values), kind="stable")[:MAX_CLIENTS]
    for number in order if len(values) > MAX_CLIENTS else range(len(values)):
        client, row, value = client_names[number], counts[number], values[number]
        lacking = names[present & (row == 0)].tolist()
        shown.add_row(client, _number(float(value)), ", ".join(lacking) or "-")
    if not present.all():
        shown.add_section()
        shown.add_row("nobody has", "", ", ".join(names[~present].tolist()))
    console.print(shown)
    if len(values) > MAX_CLIENTS:
        quarter, median, three = np.nanquantile(values, (0.25, 0.5, 0.75))
        console.print(
            f"the {MAX_CLIENTS} of {len(values):,} clients that differ most; divergence of all: "
            f"median {median:.3f}, quartiles {quarter:.3f} and {three:.3f}",
            highlight=False,
        )
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


def _cells(evaluations: Sequence[Evaluation], attribute: str, key: str) -> Sequence[str]:
    values = [getattr(evaluation, attribute).get(key, math.nan) for evaluation in evaluations]
    return [_number(value) for value in values]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def print_facts(console: Console, title: str, facts: Mapping[str, Any]) -> None:
    """Names and values line by line; inner tables and lists of rows follow, each as its own.

    Columns of rows whose cells are lists are left out.
    """
    console.print(f"[bold]{escape(title)}[/bold]", highlight=False)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")  # a path that is cut is none
    inner = {}
    for key, value in facts.items():
        if isinstance(value, Mapping) or _is_rows(value):
            inner[key] = value
        else:
            grid.add_row(f"  {key.replace('_', ' ')}", escape(_fact(value)))
    console.print(grid, highlight=False)
    for key, value in inner.items():
        console.print()
        if isinstance(value, Mapping):
            print_facts(console, key.replace("_", " "), value)
        else:
            _print_rows(console, value)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _print_rows(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    cells = [(key, value) for row in rows for key, value in row.items()]
    lists = {key for key, value in cells if isinstance(value, list)}
    columns = [key for key in dict.fromkeys(key for key, _ in cells) if key not in lists]
    table = Table(box=None, padding=(0, 1, 0, 0))
    for column in columns:
        values = [row.get(column) for row in rows]
        text = any(isinstance(value, str) for value in values)
        table.add_column(
            column.replace("_", "\n"), justify="left" if text else "right", overflow="fold"
        )
    for row in rows:
        table.add_row(*(escape(_fact(row.get(column))) for column in columns))
    console.print(table, highlight=False)


def _fact(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return " ".join(map(_fact, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
