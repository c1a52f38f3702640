"""Curves over rounds for a page: of one recipe, or of several, with bands over repetitions."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from server.pictures.report_heatmap import printable
from server.pictures.style import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, Theme

COLOURS = (BLUE, ORANGE, GREEN, RED, SKY, PURPLE)
DASHES = ("-", "--", "-.", ":")
_SCORES = (
    ("val_balanced_accuracy", "balanced accuracy"),
    ("val_mcc", "MCC"),
    ("val_macro_f1", "macro-F1"),
    ("val_worst_site_balanced_accuracy", "worst hospital"),
    ("own_val_balanced_accuracy", "own students"),
)
_RECALL = (
    ("val_recall_head", "head"),
    ("val_recall_medium", "medium"),
    ("val_recall_tail", "tail"),
)


def draw_curves(rounds: Sequence[pd.DataFrame], chosen: Sequence[int], theme: Theme) -> Figure:
    """Val scores, val recall by group and training losses of one recipe.

    With several repetitions, lines are means over those that reached the round, and bands go from
    the lowest to the highest.

    Args:
        rounds: ``rounds.csv`` of each repetition, with at least one row together.
        chosen: Rounds to mark, those whose students were tested.
        theme: Of the page.
    """
    losses = [
        (name, name.removeprefix("train_").removeprefix("loss_").replace("_", " "))
        for name in dict.fromkeys(str(name) for table in rounds for name in table)
        if name.startswith("train_loss")
    ]
    if len(losses) == 2:  # the total and its only term
        losses = losses[:1]
    figure = Figure(figsize=(10.0, 3.5), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, lines, title in zip(
        panels,
        (_SCORES, _RECALL, losses),
        ("val score", "val recall", "training loss"),
        strict=True,
    ):
        for number, (column, label) in enumerate(lines):
            _band(axes, rounds, column, label, number)
        _finish(axes, title, theme)
        for number in set(chosen):
            axes.axvline(number, color=theme.soft, linestyle=(0, (2, 2)), linewidth=0.8, zorder=0)
        if axes.get_legend_handles_labels()[0]:  # no losses if all rounds kept the student
            where = (0.5, -0.2)
            axes.legend(
                loc="upper center", bbox_to_anchor=where, ncols=2, fontsize=8, handlelength=1.8
            )
    for axes in panels[:2]:
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1)
    return figure


def draw_group_curves(groups: Mapping[str, Sequence[pd.DataFrame]], theme: Theme) -> Figure:
    """Val balanced accuracy and val tail recall of several recipes, a panel for each pair.

    Args:
        groups: ``rounds.csv`` of each repetition, by recipe. The first is drawn in every panel.
        theme: Of the page.
    """
    names = list(groups)
    per_row = 4
    if len(names) <= len(COLOURS):
        figure = Figure(figsize=(10.0, 3.6), layout="constrained")
        panels = figure.subplots(1, 2)
        for axes, column, title in (
            (panels[0], "val_balanced_accuracy", "val balanced accuracy"),
            (panels[1], "val_recall_tail", "val recall of tail classes"),
        ):
            for number, name in enumerate(names):
                _band(axes, groups[name], column, printable(name, 34), number)
            _finish(axes, title, theme)
            axes.set_ylim(0, 1)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
        return figure
    num_rows = -(-len(names) // per_row)
    figure = Figure(figsize=(10.0, 2.1 * num_rows + 0.3), layout="constrained")
    grid = figure.subplots(num_rows, per_row, sharex=True, sharey=True, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number >= len(names):
            axes.set_visible(False)
            continue
        for other in names:
            for table in groups[other]:
                if "val_balanced_accuracy" in table:
                    axes.plot(
                        table["round"], table["val_balanced_accuracy"], color=theme.line, lw=0.8
                    )
        _band(axes, groups[names[number]], "val_balanced_accuracy", "", 0)
        _finish(axes, "", theme)
        axes.set_title(printable(names[number], 30), fontsize=8, loc="left")
        axes.set_xlabel("round" if number // per_row == num_rows - 1 else "")
    figure.supylabel("val balanced accuracy", fontsize=10)
    return figure


def draw_traffic(
    rounds: Sequence[pd.DataFrame], seconds: Sequence[pd.DataFrame], theme: Theme
) -> Figure:
    """Megabytes and client seconds of each round.

    Args:
        rounds: ``rounds.csv`` of each repetition, with bytes_down and bytes_up.
        seconds: Of each repetition ``round`` and ``seconds``, summed over clients.
        theme: Of the page.
    """
    figure = Figure(figsize=(8.0, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    megabytes = [
        pd.DataFrame(
            {"round": table["round"], "d": table["bytes_down"] / 1e6, "u": table["bytes_up"] / 1e6}
        )
        for table in rounds
        if "bytes_down" in table
    ]
    _band(left, megabytes, "d", "down, to the clients", 0)
    _band(left, megabytes, "u", "up, from the clients", 1)
    _finish(left, "MB per round", theme)
    left.legend(fontsize=8, loc="lower right")
    _band(right, seconds, "seconds", "", 2)
    _finish(right, "client seconds per round", theme)
    for axes in (left, right):
        axes.set_ylim(0, max(axes.get_ylim()[1] * 1.1, 1e-6))
    return figure


def _band(axes: Axes, tables: Sequence[pd.DataFrame], column: str, label: str, number: int) -> None:
    """Mean over tables by round; a band from lowest to highest if there are several."""
    parts = [table.set_index("round")[column] for table in tables if column in table]
    parts = [part[part.notna()] for part in parts if part.notna().any()]
    if not parts:
        return
    wide = pd.concat(parts, axis=1).sort_index()
    colour = COLOURS[number % len(COLOURS)]
    axes.plot(
        wide.index,
        wide.mean(axis=1),
        color=colour,
        linestyle=DASHES[number % len(DASHES)],
        linewidth=1.6,
        marker="o" if len(wide) == 1 else "",
        label=label,
    )
    if wide.shape[1] > 1:
        axes.fill_between(
            wide.index, wide.min(axis=1), wide.max(axis=1), color=colour, alpha=0.2, linewidth=0
        )


def _finish(axes: Axes, title: str, theme: Theme) -> None:
    axes.set_xlabel("round")
    axes.set_ylabel(title)
    axes.grid(axis="y", color=theme.line, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
