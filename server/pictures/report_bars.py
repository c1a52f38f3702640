"""Recall of groups and classes, scores of several recipes, and reliability, for a page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from server.pictures.report_heatmap import printable
from server.pictures.style import BLUE, ORANGE, PURPLE, SKY, Theme

GROUP_COLOURS = {"head": BLUE, "medium": SKY, "tail": ORANGE}
_CAPPED = 3


def draw_recall(
    groups: Mapping[str, Sequence[float]],
    classes: Sequence[tuple[str, str, int]],
    recall: Mapping[str, Sequence[float]],
    theme: Theme,
) -> Figure:
    """Recall on test of head, medium and tail, and of each class with its training images.

    With several repetitions bars are means, and whiskers go from the lowest to the highest.

    Args:
        groups: Recall by group, a value per repetition; nan is no bar.
        classes: Name, group and training images of each class.
        recall: The same by class name.
        theme: Of the page.
    """
    height = max(2.6, 0.27 * len(classes) + 0.9)
    figure = Figure(figsize=(9.0, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2.2))
    for number, (name, values) in enumerate(groups.items()):
        _bar(left, number, values, GROUP_COLOURS.get(name, PURPLE), theme, upright=True)
    left.set_xticks(range(len(groups)), list(groups))
    left.set_ylim(0, 1.08)
    left.set_yticks(np.linspace(0, 1, 6))
    left.set_ylabel("test recall")
    left.grid(axis="y", color=theme.line, linewidth=0.7)
    for number, (name, group, _) in enumerate(classes):
        colour = GROUP_COLOURS.get(group, PURPLE)
        _bar(right, number, recall[name], colour, theme, upright=False)
    labels = [f"{printable(name, 24)} ({num:,})" for name, _, num in classes]
    right.set_yticks(range(len(classes)), labels)
    right.set_ylim(len(classes) - 0.4, -0.6)
    right.set_xlim(0, 1.1)
    right.set_xticks(np.linspace(0, 1, 6))
    right.set_xlabel("test recall; in brackets: training images")
    right.grid(axis="x", color=theme.line, linewidth=0.7)
    for axes in (left, right):
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8, length=0)
    return figure


def _bar(
    axes: Axes, place: int, values: Sequence[float], colour: str, theme: Theme, upright: bool
) -> None:
    known = [value for value in values if np.isfinite(value)]
    mean = float(np.mean(known)) if known else 0.0
    end = max(known, default=0.0)
    text = f"{mean:.2f}" if known else "none"
    low, high = mean - min(known, default=mean), end - mean
    bars = [[low], [high]] if len(known) > 1 else None
    style: dict[str, Any] = {"color": colour, "ecolor": theme.ink, "capsize": _CAPPED}
    at: tuple[float, float]
    if upright:
        axes.bar(place, mean, width=0.62, yerr=bars, **style)
        at, offset, ha, va = (place, end), (0, 2), "center", "bottom"
    else:
        axes.barh(place, mean, height=0.66, xerr=bars, **style)
        at, offset, ha, va = (end, place), (3, 0), "left", "center"
    axes.annotate(
        text,
        at,
        xytext=offset,
        textcoords="offset points",
        ha=ha,
        va=va,
        fontsize=8,
        color=theme.ink,
    )


def draw_scores(scores: Mapping[str, Mapping[str, Sequence[float]]], theme: Theme) -> Figure:
    """Scores of several recipes: a dot per repetition, a bar at the mean.

    Args:
        scores: For each metric, values of each repetition by recipe.
        theme: Of the page.
    """
    names = list(next(iter(scores.values())))
    figure = Figure(figsize=(10.0, max(1.8, 0.27 * len(names) + 0.9)), layout="constrained")
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for axes, (metric, by_name) in zip(panels, scores.items(), strict=True):
        for row, name in enumerate(names):
            known = [value for value in by_name[name] if np.isfinite(value)]
            axes.plot(known, [row] * len(known), "o", color=BLUE, ms=4, alpha=0.7, mew=0)
            if known:
                axes.plot([np.mean(known)], [row], "|", color=theme.ink, ms=12, mew=1.8)
        axes.set_xlabel(metric, fontsize=9)
        axes.grid(axis="x", color=theme.line, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8, length=0)
        axes.locator_params(axis="x", nbins=5)
    panels[0].set_yticks(range(len(names)), [printable(name, 34) for name in names])
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def draw_reliability(
    confidence: Sequence[float], accuracy: Sequence[float], num_images: Sequence[int], theme: Theme
) -> Figure:
    """Accuracy over confidence, and how many images have it.

    Args:
        confidence: Mean confidence of each of the equally wide bins; nan in an empty one.
        accuracy: Share of images that are right, as ``confidence``.
        num_images: Images of each bin.
        theme: Of the page.
    """
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    num_bins = len(num_images)
    middles = (np.arange(num_bins) + 0.5) / num_bins
    heights = np.nan_to_num(np.asarray(accuracy, float))
    top.bar(middles, heights, width=0.9 / num_bins, color=SKY)
    top.plot([0, 1], [0, 1], color=theme.soft, linestyle="--", linewidth=1, label="calibrated")
    top.plot(confidence, accuracy, "o", color=ORANGE, ms=4, label="mean confidence of the bin")
    top.set_ylim(0, 1.04)
    top.set_ylabel("accuracy")
    top.legend(fontsize=8, loc="upper left")
    below.bar(middles, num_images, width=0.9 / num_bins, color=BLUE)
    below.set_ylabel("images")
    below.set_xlabel("confidence")
    below.set_xlim(0, 1)
    for axes in (top, below):
        axes.grid(axis="y", color=theme.line, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
    return figure
