"""The picture of a run: its learning curves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from server.pictures.style import BLUE, DARK, GREEN, GREY, ORANGE, RED, SKY, STYLE, write_figure

_Line = tuple[str, str, str, str]
# Panels of plot_curves: title and (column, label, colour, marker) of each line.
_PANELS: tuple[tuple[str, tuple[_Line, ...]], ...] = (
    (
        "Validation scores",
        (
            ("val_balanced_accuracy", "balanced accuracy", BLUE, "o"),
            ("val_mcc", "MCC", ORANGE, "s"),
            ("val_worst_site_balanced_accuracy", "worst hospital", DARK, "v"),
            ("own_val_balanced_accuracy", "own students", SKY, "D"),
        ),
    ),
    (
        "Validation recall by class group",
        (
            ("val_recall_head", "head", BLUE, "o"),
            ("val_recall_medium", "medium", ORANGE, "s"),
            ("val_recall_tail", "tail", RED, "^"),
        ),
    ),
    ("Training loss", (("train_loss", "loss", BLUE, "o"),)),
    (
        "FPG prior (distance from the teacher's statistics)",
        (
            ("prior", "prompted images", GREEN, "o"),
            ("prior_clean", "plain images", GREY, "s"),
        ),
    ),
)


def plot_curves(
    rounds: pd.DataFrame, path: Path, title: str, best_round: int | None = None
) -> None:
    """Draw a run's curves over the rounds and write them as PNG.

    Args:
        rounds: A row per round, at least one, with the columns ``round``,
            ``val_balanced_accuracy``, ``val_mcc``, ``val_worst_site_balanced_accuracy``,
            ``val_recall_head``, ``val_recall_medium``, ``val_recall_tail``, ``train_loss`` and, if
            prompts were trained, ``prior`` and ``prior_clean``; with the personalised view also
            ``own_val_balanced_accuracy``. nan leaves a gap.
        path: File to write, replaced as a whole.
        title: Heading.
        best_round: The round to mark; None means that of the best ``val_balanced_accuracy``.

    Raises:
        ValueError: If there is no round.
    """
    if rounds.empty:
        raise ValueError("rounds has 0 rows; curves need at least 1 finished round")
    if best_round is None and rounds["val_balanced_accuracy"].notna().any():
        best_round = int(rounds["round"].iloc[np.nanargmax(rounds["val_balanced_accuracy"])])
    prompted = any(rounds.get(name, pd.Series()).notna().any() for name in ("prior", "prior_clean"))
    shape, size = ((2, 2), (11.5, 7.6)) if prompted else ((1, 3), (15.0, 4.2))
    with rc_context(STYLE):
        figure = Figure(figsize=size, dpi=120)
        figure.suptitle(title, fontsize=13, fontweight="bold")
        figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
        panels = figure.subplots(*shape, squeeze=False).flat
        for axes, (heading, lines) in zip(panels, _PANELS, strict=False):
            _draw_lines(axes, rounds, lines, best_round)
            axes.set_title(heading, loc="left")
        write_figure(figure, path)


def _draw_lines(
    axes: Axes, rounds: pd.DataFrame, lines: Sequence[_Line], best_round: int | None
) -> None:
    for name, label, colour, marker in lines:
        if name in rounds:
            axes.plot(
                rounds["round"],
                rounds[name],
                color=colour,
                marker=marker,
                markersize=5 if len(rounds) <= 40 else 0,
                linewidth=1.8,
                label=label,
            )
    first, last = rounds["round"].min(), rounds["round"].max()
    margin = max(0.5, 0.03 * (last - first))
    axes.set_xlim(first - margin, last + margin)
    if best_round is not None:
        axes.axvline(best_round, color=DARK, linestyle=(0, (2, 2)), linewidth=1, zorder=0)
        on_left = best_round > (first + last) / 2
        axes.annotate(
            f"best round: {best_round}",
            (best_round, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if on_left else 4, -2),
            textcoords="offset points",
            ha="right" if on_left else "left",
            va="top",
            fontsize=8,
            color=DARK,
        )
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    # Room above the lines for the mark's text; scores keep their zero line.
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.0), high + 0.1 * (high - min(low, 0.0)))
    if len(lines) > 1:
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
            ncols=len(lines),
            fontsize=9,
            columnspacing=1.2,
            handlelength=1.6,
        )
