"""Tables of shaded cells for a page: counts, confusion matrices, recall by hospital, weights."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import LogLocator

from server.pictures.style import STRONG, Theme, short_name

Floats = npt.NDArray[np.float64]

_MAX_DRAWN_CELLS = 1500
"""Beyond so many cells they are pixels in the drawing: vectors would make the page large."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class HeatMap:
    """What is drawn.

    Attributes:
        values: Decide the shades, float (rows, columns); nan is hatched.
        texts: In the cells, one per cell, may have two lines; empty writes nothing.
        rows: Names of the rows.
        columns: Names of the columns.
        row_title: What the rows are.
        column_title: What the columns are.
        unit: Of the values, beside the scale.
        logarithmic: Shade by the logarithm of values, which are >= 1.
        highest: Value of the strongest shade; not given means the largest.
    """

    values: Floats
    texts: Sequence[Sequence[str]]
    rows: Sequence[str]
    columns: Sequence[str]
    row_title: str
    column_title: str
    unit: str
    logarithmic: bool = False
    highest: float | None = None


def printable(name: str, length: int = 28) -> str:
    """A user's text as a drawing can show it: short, on one line, without control characters."""
    return short_name(_CONTROL.sub("\ufffd", name), length)


def draw_heatmap(shown: HeatMap, theme: Theme) -> Figure:
    """Draw the table; the first row is at the top.

    Args:
        shown: With at least one row and one column.
        theme: Of the page.
    """
    num_rows, num_columns = shown.values.shape
    lines = max((text.count("\n") + 1 for row in shown.texts for text in row), default=1)
    rows, columns = ([printable(n, 22) for n in names] for names in (shown.rows, shown.columns))
    widest = max(
        (len(t) for row in shown.texts for part in row for t in part.split("\n")), default=0
    )
    cell_width = min(max(0.085 * widest + 0.12, 0.34), 0.9) if widest else 0.16
    names_width = 0.085 * max(map(len, rows)) + 0.5
    tilted = widest == 0 or max(map(len, columns)) * 0.085 > cell_width
    width = min(max(names_width + cell_width * num_columns + 1.1, 4.0), 10.0)
    cell_height = 0.3 if lines == 1 else 0.42
    heading = (0.07 * max(map(len, columns)) if tilted and shown.texts else 0.2) + 0.9
    figure = Figure(figsize=(width, heading + cell_height * num_rows), layout="constrained")
    axes = figure.subplots()
    present = shown.values[np.isfinite(shown.values)]
    highest = shown.highest or (float(present.max()) if present.size else 1.0)
    norm = LogNorm(1, max(highest, 2)) if shown.logarithmic else Normalize(0, highest or 1.0)
    many = shown.values.size > _MAX_DRAWN_CELLS
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(shown.values),
        cmap=ListedColormap(theme.shades),
        norm=norm,
        edgecolor="none" if many else theme.paper,
        linewidth=0 if many else 1.0,
        rasterized=many,
    )
    # What lies inside the axes need not be measured for the layout, which would take long.
    if absent := [
        Path([(c, r), (c + 1, r), (c + 1, r + 1), (c, r + 1), (c, r)], closed=True)
        for r, c in np.argwhere(~np.isfinite(shown.values))
    ]:
        # One part: a thousand of them, each with its pattern, take long to draw and to print.
        hatched = PathPatch(Path.make_compound_path(*absent), facecolor=theme.paper)
        hatched.set(edgecolor=theme.soft, hatch="////", linewidth=0, alpha=0.45, in_layout=False)
        axes.add_patch(hatched)
    size = 8 if num_columns <= 14 else 6.5
    for row, texts in enumerate(shown.texts):
        for column, text in enumerate(texts):
            value = shown.values[row, column]
            ink = theme.inks[bool(norm(value) >= STRONG)] if np.isfinite(value) else theme.soft
            written = axes.text(
                column + 0.5, row + 0.5, text, ha="center", va="center", size=size, color=ink
            )
            written.set_in_layout(False)
    axes.invert_yaxis()
    # First, as the labels at the top are others than those below, which would be tilted instead.
    axes.xaxis.tick_top()
    axes.set_yticks(np.arange(num_rows) + 0.5, rows, size=8)
    if shown.texts:
        axes.set_xticks(np.arange(num_columns) + 0.5, columns, size=8)
        if tilted:
            for label in axes.get_xticklabels():
                label.set(rotation=40, ha="left", rotation_mode="anchor")
    else:
        step = max(1, -(-num_columns // 12))
        axes.set_xticks(np.arange(0, num_columns, step) + 0.5, columns[::step], size=8)
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(shown.column_title, labelpad=8)
    axes.set_ylabel(shown.row_title)
    thin = max(18.0, 5 * figure.get_figheight())
    bar = figure.colorbar(mesh, ax=axes, shrink=0.9, aspect=thin, pad=0.02, label=shown.unit)
    # Without lines between its shades.
    assert bar.solids is not None, "the scale of a mesh is solid"
    bar.solids.set_edgecolor("face")
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    if shown.logarithmic:
        bar.ax.minorticks_off()
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure
