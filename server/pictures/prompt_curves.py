"""The picture of a run's prompts over its rounds: a panel per measure, a line per hospital."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedkd.fourier.quality import COLLAPSED_BELOW
from server.pictures.style import DARK, GREY, STYLE, class_colours, short_name, write_figure

MAX_COLOURED = 8
"""Hospitals with a colour of their own; of more, only those that the caller names."""
_MARKERS = "o^sDvP*X"


class _Panel(NamedTuple):
    column: str
    heading: str
    unit: str
    dashed: str = ""
    limit: float | None = None


_PANELS = (
    _Panel("prior", "Prior (dashed: without prompts)", "nats", "prior_clean"),
    _Panel("prompt_magnitude", "Magnitude", "mean |log-gain|, nats"),
    _Panel("prompt_rank", "Effective rank (dotted: alarm)", "directions", limit=COLLAPSED_BELOW),
    _Panel("prompt_diversity", "Diversity", "1 - cos of two prompts"),
    _Panel("prompt_cosine", "Cosine to the clean teacher feature", "cosine"),
    _Panel("prompt_saturated", "Saturated pixel values", "fraction"),
    _Panel("explore_diversity", "Diversity penalty (lower: more diverse)", "penalty"),
    _Panel("explore_confidence", "Confidence loss (lower: surer)", "nats"),
    _Panel("explore_out_of_range", "Distance out of range", "pixel values, 0 to 1"),
    _Panel("explore_disagreement", "Disagreement with the student (AKD)", "2 - 2 cos"),
)


def drawn_columns(clients: pd.DataFrame) -> list[str]:
    """Columns that :func:`plot_prompt_curves` has a panel for: those with any number but 0."""
    found = (panel.column for panel in _PANELS if panel.column in clients)
    return [name for name in found if clients[name].fillna(0).any()]


def plot_prompt_curves(
    clients: pd.DataFrame, path: Path, title: str, coloured: Sequence[int]
) -> None:
    """Draw all measures of prompts that a run has noted, over rounds, as PNG.

    Args:
        clients: A row per client and round, with ``round``, ``partition_id``, ``client`` and at
            least one of :func:`drawn_columns`.
        path: File to write, replaced as a whole.
        title: Heading.
        coloured: Partition ids that get a colour and a name where there are more than
            MAX_COLOURED hospitals; the others are thin and grey.

    Raises:
        ValueError: If there is nothing to draw.
    """
    columns = drawn_columns(clients)
    if not columns:
        raise ValueError("no column of clients is a measure of prompts")
    panels = [panel for panel in _PANELS if panel.column in columns]
    numbers = clients["partition_id"].astype(int)
    hospitals = {number: clients[numbers == number] for number in sorted(set(numbers))}
    if len(hospitals) <= MAX_COLOURED:
        coloured = list(hospitals)
    colours = dict(zip(coloured, class_colours(len(coloured)), strict=True))
    num_rows = -(-len(panels) // 2)
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.5 * num_rows + 1.2), dpi=120)
        figure.suptitle(title, fontsize=13, fontweight="bold")
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
        grid = figure.subplots(num_rows, 2, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw(axes, panel, hospitals, colours)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
        write_figure(figure, path)


def _draw(
    axes: Axes, panel: _Panel, hospitals: dict[int, pd.DataFrame], colours: dict[int, str]
) -> None:
    others = [number for number in hospitals if number not in colours]
    for number in [*others, *colours]:
        # A round without exploration measures nothing: the line goes on to the next that does.
        rows = hospitals[number].dropna(subset=[panel.column])
        colour = colours.get(number, GREY)
        grey = number in others
        label = short_name(str(hospitals[number]["client"].iloc[0]), 20)
        if grey:
            label = f"the other {len(others)}" if number == others[0] else "_"
        axes.plot(
            rows["round"],
            rows[panel.column],
            color=colour,
            linewidth=0.7 if grey else 1.6,
            marker="" if grey else _MARKERS[list(colours).index(number) % len(_MARKERS)],
            markersize=4 if len(rows) <= 40 else 0,
            label=label,
        )
        if panel.dashed in rows and not grey:
            axes.plot(rows["round"], rows[panel.dashed], "--", color=colour, linewidth=1.2)
    if panel.limit is not None:
        axes.axhline(panel.limit, color=DARK, linestyle=":", linewidth=1.2)
    axes.set_title(panel.heading, loc="left", fontsize=10)
    axes.set(xlabel="round", ylabel=panel.unit)
    first = min(rows["round"].min() for rows in hospitals.values())
    last = max(rows["round"].max() for rows in hospitals.values())
    margin = max(0.5, 0.03 * (last - first))
    axes.set_xlim(first - margin, last + margin)
    low, high = (float(limit) for limit in axes.dataLim.intervaly)
    low = min(low, 0.0)
    axes.set_ylim(low, high + 0.08 * (high - low))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
