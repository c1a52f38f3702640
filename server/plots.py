"""Pictures of a run: its learning curves, and which hospital has which diseases.

Figures are made without pyplot, so nothing global changes and no display is needed. Colours are
those of Okabe and Ito, "Color Universal Design", 2008, told apart with colour-blind eyes.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from fedkd.files import replacing

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, YELLOW, PURPLE, GREY, DARK = "#56B4E9", "#F0E442", "#CC79A7", "#999999", "#333333"
CLASS_COLOURS = (BLUE, ORANGE, GREEN, RED, SKY, PURPLE, YELLOW, GREY)
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "text.parse_math": False,  # a "$" in a hospital's name is a "$"
}

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


def plot_partition(
    counts: npt.NDArray[np.int64],
    client_names: Sequence[str],
    class_names: Sequence[str],
    path: Path,
    title: str,
) -> None:
    """Draw which client has how many images of which class and write it as PNG.

    Left, one bar per client, stacked by class, on a linear axis, for only there do lengths add up.
    Right, the table of counts, shaded by their logarithm, so that rare diseases are seen; a class
    that a client lacks is a hatched cell. The swatches above its columns are the bars' legend.

    Args:
        counts: Images, int64 (num_clients, num_classes), at least one of each.
        client_names: One name per client.
        class_names: One name per class.
        path: File to write, replaced as a whole.
        title: Heading.
    """
    num_clients, num_classes = counts.shape
    size = (9.5 + 0.55 * num_classes, min(2.6 + 0.36 * num_clients, 40.0))
    with rc_context(STYLE):
        figure = Figure(figsize=size, dpi=120)
        figure.suptitle(title, fontsize=13, fontweight="bold")
        figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
        bars, table = figure.subplots(
            1, 2, sharey=True, width_ratios=(5.0, 1.5 + 0.6 * num_classes)
        )
        colours = class_colours(num_classes)
        _draw_bars(bars, counts, colours)
        _draw_table(table, counts, class_names, colours)
        bars.set_yticks(range(num_clients), [short_name(name) for name in client_names])
        bars.set_ylim(num_clients - 0.5, -0.5)
        write_figure(figure, path)


def _draw_bars(axes: Axes, counts: npt.NDArray[np.int64], colours: Sequence[str]) -> None:
    rows, left = np.arange(len(counts)), np.zeros(len(counts))
    # With many classes, lines between them would cover the rare ones.
    line = 0.4 if len(colours) <= len(CLASS_COLOURS) else 0
    for colour, column in zip(colours, counts.T, strict=True):
        axes.barh(
            rows, column, left=left, height=0.72, color=colour, edgecolor="white", linewidth=line
        )
        left += column
    for row, total in enumerate(left):
        axes.annotate(
            f"{total:,.0f}",
            (total, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=DARK,
        )
    axes.set_xlim(0, max(left.max(), 1) * 1.16)
    axes.set_xlabel("training images")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)


def _draw_table(
    axes: Axes,
    counts: npt.NDArray[np.int64],
    class_names: Sequence[str],
    colours: Sequence[str],
) -> None:
    highest = max(int(counts.max()), 2)
    shades = np.ma.masked_equal(counts, 0)
    axes.imshow(shades, cmap="Blues", norm=LogNorm(1, highest), aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        corner = (column - 0.5, row - 0.5)
        if count == 0:
            absent = Rectangle(corner, 1, 1, facecolor="#F7F7F7", edgecolor="#D0D0D0", linewidth=0)
            absent.set_hatch("////")
            axes.add_patch(absent)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="white", linewidth=1.5))
        axes.text(
            column,
            row,
            f"{count:,}",
            ha="center",
            va="center",
            fontsize=9,
            color=RED if count == 0 else "white" if count > highest**0.55 else DARK,
            fontweight="bold" if count == 0 else "normal",
        )
    names = [short_name(name) for name in class_names]
    axes.set_xticks(range(len(names)), names, rotation=35, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    # The tick above each column is the legend of the bars: a swatch in the colour of the class.
    axes.tick_params(axis="x", length=7, width=20, pad=4)
    for tick, colour in zip(axes.xaxis.get_major_ticks(), colours, strict=True):
        tick.tick2line.set_markeredgecolor(colour)
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.spines[:].set_visible(False)


def _mixed(colour: str, share: float, brightness: float) -> str:
    red, green, blue = ((1 - share) * part + share * brightness for part in to_rgb(colour))
    return to_hex((red, green, blue)).upper()


def class_colours(num_classes: int) -> list[str]:
    """Colours that differ much between neighbours: pure, lightened, darkened, and so again."""
    colours = [
        _mixed(colour, share, brightness)
        for share, brightness in ((0.0, 0), (0.55, 1), (0.5, 0))
        for colour in CLASS_COLOURS
    ]
    return list(itertools.islice(itertools.cycle(colours), num_classes))


def short_name(name: str, length: int = 28) -> str:
    """The name, without its middle if it is long: names differ at either end."""
    end = (length - 1) // 2
    return name if len(name) <= length else f"{name[: length - 1 - end]}…{name[-end:]}"


def write_figure(figure: Figure, path: Path) -> None:
    """Write as PNG, whole or not at all; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        figure.savefig(part, format="png")
