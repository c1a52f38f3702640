"""The picture of a partition: which hospital has which diseases."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from server.many_clients import MAX_CLIENTS
from server.pictures.style import (
    CLASS_COLOURS,
    DARK,
    RED,
    STYLE,
    class_colours,
    short_name,
    write_figure,
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
    Of more clients than ``MAX_CLIENTS`` some of all sizes are drawn.

    Args:
        counts: Images, int64 (num_clients, num_classes), at least one of each.
        client_names: One name per client.
        class_names: One name per class.
        path: File to write, replaced as a whole.
        title: Heading.
    """
    if len(counts) > MAX_CLIENTS:
        # From the largest to the smallest, in even steps, so that the picture shows the spread.
        order = np.argsort(-counts.sum(axis=1), kind="stable")
        kept = order[np.linspace(0, len(order) - 1, MAX_CLIENTS).round().astype(int)]
        title = f"{title} ({MAX_CLIENTS} of {len(counts):,}, from the largest to the smallest)"
        counts, client_names = counts[kept], [client_names[number] for number in kept]
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
