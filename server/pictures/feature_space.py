"""The picture of a feature space: two dimensions, coloured by class and by hospital."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from server.pictures.style import CLASS_COLOURS, STYLE, class_colours, short_name, write_figure

MARKERS = "o^sDvP*X"
Integers = npt.NDArray[np.int64]


def plot_feature_space(
    places: npt.NDArray[np.float64],
    labels: Integers,
    class_names: Sequence[str],
    sites: Integers,
    site_names: Sequence[str],
    path: Path,
    title: str,
) -> None:
    """Draw the same points twice, coloured by class and by hospital, and write them as PNG.

    Colours and markers together tell 64 names apart. Names without a point are left out; rare ones
    lie on top. One hospital alone gives no second panel.

    Args:
        places: Float (num_points, 2), at least one.
        labels: Class of each point, int64 (num_points,).
        class_names: One name per class.
        sites: Hospital of each point, int64 (num_points,).
        site_names: One name per hospital.
        path: File to write, replaced as a whole.
        title: Heading.
    """
    panels = [("by class", labels, class_names)]
    if len(site_names) > 1:
        panels.append(("by hospital", sites, site_names))
    most = max(len(np.unique(values)) for _, values, _ in panels)
    with rc_context(STYLE):
        figure = Figure(figsize=(6.6 * len(panels), 6.3 + 0.21 * -(-most // 3)), dpi=120)
        figure.suptitle(title, fontsize=13, fontweight="bold")
        figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
        for axes, (heading, values, names) in zip(
            figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True
        ):
            _draw_points(axes, places, values, names)
            axes.set_title(heading, loc="left")
        write_figure(figure, path)


def _draw_points(
    axes: Axes, places: npt.NDArray[np.float64], values: Integers, names: Sequence[str]
) -> None:
    counts = np.bincount(values, minlength=len(names))
    colours = class_colours(len(names))
    size = float(np.clip(9000 / len(values), 16, 36))
    handles = {}
    for number in np.argsort(-counts, kind="stable"):
        if counts[number]:
            here = places[values == number]
            handles[number] = axes.scatter(
                here[:, 0],
                here[:, 1],
                s=size,
                color=colours[number],
                # A marker for each round of the palette, whose shades are alike otherwise.
                marker=MARKERS[number // len(CLASS_COLOURS) % len(MARKERS)],
                edgecolors="white",
                linewidths=0.3,
                label=f"{short_name(names[number], 24)} ({counts[number]:,})",
            )
    # Axes of t-SNE have no meaning; a frame holds the points together.
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    axes.spines[:].set_visible(True)
    axes.legend(
        handles=[handles[number] for number in sorted(handles)],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.01),
        ncols=min(3, len(handles)),
        fontsize=8,
        markerscale=1.6 if size < 20 else 1.0,
        columnspacing=1.0,
        handletextpad=0.2,
    )
