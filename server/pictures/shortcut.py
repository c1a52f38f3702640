"""Pictures of a sweep over a mark: AUC and alignment over the degradation, priority as heat map."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from server.pictures.style import BLUE, DARK, GREEN, ORANGE, RED, STYLE, write_figure

Band = tuple[float, float]
_Line = tuple[str, str, str, str]
_AUC: tuple[_Line, ...] = (
    ("auc_iid", "IID: mark as in training", BLUE, "o"),
    ("auc_clean", "clean: no mark", GREEN, "s"),
    ("auc_ood", "OOD: mark on the other class", RED, "^"),
)
_ALIGNMENT: tuple[_Line, ...] = (
    ("band_share", "share of the mark's band", ORANGE, "D"),
    ("alignment", "alignment with the mark's spectrum", BLUE, "o"),
)


def plot_auc(summary: pd.DataFrame, path: Path, title: str) -> None:
    """AUC over the degradation on three versions of the test images, mean and sd over folds.

    Args:
        summary: Of :class:`server.shortcut_sweep.Sweep`.
        path: File to write, replaced as a whole.
        title: Heading.
    """
    with rc_context(STYLE):
        figure, axes = _one_panel(title)
        dots = (0, (2, 2))
        axes.axhline(0.5, color=DARK, linestyle=dots, linewidth=1, zorder=0, label="chance")
        _draw(axes, summary, _AUC)
        axes.set(ylim=(-0.03, 1.03), ylabel="AUC on test images")
        write_figure(figure, path)


def plot_alignment(summary: pd.DataFrame, path: Path, title: str) -> None:
    """Band share and alignment of the learning priority over the degradation, as in `plot_auc`."""
    with rc_context(STYLE):
        figure, axes = _one_panel(title)
        _draw(axes, summary, _ALIGNMENT)
        axes.set(ylim=(-0.03, 1.03), ylabel="of learning priorities, 0 to 1")
        write_figure(figure, path)


def plot_priority(
    priorities: Mapping[float, npt.NDArray[np.float64]], band: Band, path: Path, title: str
) -> None:
    """Learning priority as a heat map: rows are degradations, columns frequencies.

    Args:
        priorities: For each degradation the share of each ring 1..K, float64 (K,).
        band: Of the mark; its limits are drawn.
        path: File to write, replaced as a whole.
        title: Heading.
    """
    degradations = sorted(priorities)
    shares = np.stack([priorities[d] for d in degradations])
    num = shares.shape[1]
    # Logarithmic: the lowest frequencies have ten times what any other has.
    highest = 100 * float(np.nanmax(shares, initial=0.0))
    scale = LogNorm(0.1, max(highest, 1.0))
    with rc_context(STYLE):
        figure = Figure(figsize=(8.4, 2.3 + 0.42 * len(degradations)), dpi=110)
        figure.suptitle(title, fontsize=12, fontweight="bold")
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
        axes = figure.subplots()
        edges = (np.arange(num + 1) + 0.5) / num
        drawn = axes.pcolormesh(edges, np.arange(len(degradations) + 1), 100 * shares,
                                cmap="cividis", norm=scale)  # fmt: skip
        axes.set_yticks(np.arange(len(degradations)) + 0.5, [f"{d:g}" for d in degradations])
        axes.set(xlabel="spatial frequency (1 = highest along an axis)", ylabel="degradation d")
        for limit in band:
            axes.axvline(limit, color="white", linewidth=2.6)
            axes.axvline(limit, color=RED, linewidth=1.4, linestyle=(0, (4, 2)))
        axes.set_xlim(edges[0], edges[-1])
        axes.set_title(f"dashed: band of the mark, {band[0]:g} to {band[1]:g}", loc="left",
                       fontsize=9)  # fmt: skip
        bar = figure.colorbar(
            drawn, ax=axes, label="share of priority in %", extend="min", pad=0.02, format="%g"
        )
        bar.ax.minorticks_off()
        write_figure(figure, path)


def plot_marks(
    images: Sequence[npt.NDArray[np.float64]],
    band: Band,
    strength: float,
    path: Path,
    title: str,
) -> None:
    """One image without and with its mark, and the mark alone.

    Args:
        images: Clean and marked, each (channels, height, width) in [0, 1].
        band: Of the mark.
        strength: Of the mark.
        path: File to write, replaced as a whole.
        title: Heading.
    """
    clean, marked = images
    mark = (marked - clean).mean(0)
    with rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.3), dpi=110)
        figure.suptitle(title, fontsize=12, fontweight="bold")
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
        panels = figure.subplots(1, 3)
        for axes, image, heading in zip(
            panels[:2], (clean, marked), ("clean", f"marked, strength {strength:g}"), strict=True
        ):
            axes.imshow(image.transpose(1, 2, 0), interpolation="nearest")
            axes.set_title(heading, loc="left")
        limit = 4 * strength
        drawn = panels[2].imshow(
            mark, cmap="gray", vmin=-limit, vmax=limit, interpolation="nearest"
        )
        panels[2].set_title(f"mark, band {band[0]:g} to {band[1]:g}", loc="left")
        figure.colorbar(drawn, ax=panels[2], label="of the range of pixels", shrink=0.8)
        for axes in panels:
            axes.set(xticks=[], yticks=[])
        write_figure(figure, path)


def _one_panel(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.6), dpi=110)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    return figure, figure.subplots()


def _draw(axes: Axes, summary: pd.DataFrame, lines: Sequence[_Line]) -> None:
    folds = sorted(set(summary["n"]))
    span = float(np.ptp(summary["degradation"])) or 1.0
    for number, (name, label, colour, marker) in enumerate(lines):
        # A little beside each other: at d = 0 all versions of the test images are the same.
        shift = 0.008 * span * (number - (len(lines) - 1) / 2)
        axes.errorbar(
            summary["degradation"] + shift,
            summary[f"{name}_mean"],
            yerr=summary[f"{name}_sd"].fillna(0),
            color=colour,
            marker=marker,
            markersize=6,
            linewidth=1.8,
            capsize=3,
            label=label,
        )
    axes.set_xlabel("degradation d: share of the class's images that have the mark")
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    shown = f"{folds[0]}" if len(folds) == 1 else f"{folds[0]} to {folds[-1]}"
    axes.set_title(f"mean ± sd over {shown} folds", loc="left", fontsize=9)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=1, fontsize=9)
