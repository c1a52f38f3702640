"""Pictures of learning priorities: curves over frequency, and heat maps with their centroids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedkd.fourier.priority_curve import PriorityCurve
from fedkd.probing.worth import MIN_GROUPS
from server.pictures.style import DARK, GREY, STYLE, class_colours, short_name, write_figure

FREQUENCY = "spatial frequency (1 = highest, a period of 2 px)"
_LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))


@dataclass(frozen=True, eq=False)
class Measured:
    """One curve of a picture.

    Attributes:
        label: Which network.
        source: Path of its run, or of the folder of a teacher's file; "." for one by name.
        round_number: Of a student; None for a teacher.
        group: The class or hospital whose images were shown; "all" for all.
        curve: What was measured.
    """

    label: str
    source: str
    round_number: int | None
    group: str
    curve: PriorityCurve

    @property
    def is_unsure(self) -> bool:
        """Whether there are so few lesions, patients or images that intervals mean little."""
        return self.curve.num_groups < MIN_GROUPS


def plot_spectra(lines: Sequence[Measured], path: Path, title: str, subtitle: str) -> None:
    """Draw priority over frequency, a line and a 95 % band for each, and write them as PNG.

    The dotted line is a network that responds to all frequencies alike.

    Args:
        lines: At least one, all of images of one size.
        path: File to write, replaced as a whole.
        title: Heading.
        subtitle: Below it.
    """
    colours = class_colours(len(lines))
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.6 + 0.24 * len(lines)), dpi=120)
        figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
        figure.suptitle(title, fontsize=13, fontweight="bold")
        axes = figure.subplots()
        axes.set_title(f"{subtitle}; bands: 95 % intervals", loc="left", fontsize=9, color=DARK)
        for number, line in enumerate(lines):
            curve = line.curve
            axes.fill_between(
                curve.frequencies, curve.low, curve.high, color=colours[number], alpha=0.2, lw=0
            )
            axes.plot(
                curve.frequencies,
                curve.priority,
                color=colours[number],
                linestyle=_LINES[number % len(_LINES)],
                linewidth=1.8,
                label=f"{short_name(line.label, 60)}: centroid {curve.centroid.value:.3f}",
            )
        num_rings = len(lines[0].curve.frequencies)
        axes.axhline(1 / num_rings, color=GREY, linestyle=(0, (1, 2)), linewidth=1.2, label="flat")
        axes.set(xlim=(0, 1), ylim=(0, None), xlabel=FREQUENCY, ylabel="priority (share of a ring)")
        axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=9, handlelength=3)
        write_figure(figure, path)


def plot_heat_maps(
    panels: Mapping[str, Sequence[tuple[str, Measured]]], path: Path, title: str, subtitle: str
) -> None:
    """Draw a heat map per panel, a row for each curve, beside the centroids of its rows.

    Colours are on one scale: how many times the priority of a flat spectrum. Rows of few images
    have a question mark and a hollow point.

    Args:
        panels: Heading of each panel, and its rows from top to bottom with their names.
        path: File to write, replaced as a whole.
        title: Heading.
        subtitle: Below it.
    """
    sizes = [max(0.26 * len(rows), 0.8) for rows in panels.values()]
    curves = [line.curve for rows in panels.values() for _, line in rows]
    factors = np.concatenate([curve.priority * len(curve.priority) for curve in curves])
    top = max(1.5, float(np.nanmax(factors, initial=0)))
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 1.9 + sum(sizes) + 0.45 * len(sizes)), dpi=120)
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
        figure.suptitle(f"{title}\n", fontsize=13, fontweight="bold")
        figure.text(0.5, 1 - 0.42 / figure.get_figheight(), subtitle, ha="center", va="center",
                    fontsize=9, color=DARK)  # fmt: skip
        grid = figure.subplots(
            len(panels), 2, squeeze=False, width_ratios=(3, 1.3), height_ratios=sizes, sharex="col"
        )
        for (heat, points), (heading, rows) in zip(grid, panels.items(), strict=True):
            drawn = _draw_rows(heat, rows, TwoSlopeNorm(1.0, 0.0, top))
            _draw_centroids(points, rows)
            heat.set_title(heading, loc="left", fontsize=10)
        heat, points = grid[-1]
        heat.set_xlabel(FREQUENCY)
        points.set_xlabel("centroid, 95 % interval")
        bar = figure.colorbar(drawn, ax=list(grid[:, 0]), location="bottom", aspect=45,
                              shrink=0.8)  # fmt: skip
        above = [tick for tick in MaxNLocator(5).tick_values(1, top) if 1 < tick <= top]
        bar.set_ticks([0, 0.5, 1, *above], labels=[f"{tick:g}" for tick in (0, 0.5, 1, *above)])
        bar.set_label("priority, in multiples of a flat spectrum", fontsize=9)
        bar.outline.set_visible(False)
        write_figure(figure, path)


def _draw_rows(axes: Axes, rows: Sequence[tuple[str, Measured]], norm: TwoSlopeNorm) -> QuadMesh:
    frequencies = rows[0][1].curve.frequencies
    num = len(frequencies)
    values = np.array([line.curve.priority * num for _, line in rows])
    # Ring k holds radii between (k - 1/2) / K and (k + 1/2) / K.
    edges = np.append(frequencies - 0.5 / num, 1 + 0.5 / num)
    drawn = axes.pcolormesh(edges, np.arange(len(rows) + 1) - 0.5, values, norm=norm, cmap="PuOr_r")
    step = -(-len(rows) // 40)
    shown = [number for number in range(len(rows)) if number % step == 0]
    axes.set_yticks(shown, [_row_name(*rows[number]) for number in shown], fontsize=8)
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    return drawn


def _row_name(name: str, line: Measured) -> str:
    if line.group == "all":
        return short_name(name)
    return f"{short_name(name)} ({line.curve.num_images}{' ?' if line.is_unsure else ''})"


def _draw_centroids(axes: Axes, rows: Sequence[tuple[str, Measured]]) -> None:
    places = np.arange(len(rows))
    values, low, high = np.array([line.curve.centroid for _, line in rows]).T
    unsure = np.array([line.is_unsure for _, line in rows])
    axes.hlines(places, low, high, color=DARK, linewidth=1.2)
    axes.plot(values[~unsure], places[~unsure], "o", color=DARK, markersize=5)
    axes.plot(
        values[unsure], places[unsure], "o", color=DARK, markersize=5, markerfacecolor="white"
    )
    axes.set(ylim=(len(rows) - 0.5, -0.5), yticks=[])
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
