"""Drawings of a page are recoloured for dark pages, to what they would be if drawn for them."""

import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
from matplotlib import rc_context
from matplotlib.colors import to_rgb

from server.comparison.statistics import analyse
from server.pictures import comparison, page, report_bars, report_curves
from server.pictures.page import Drawing
from server.pictures.report_heatmap import HeatMap, draw_heatmap
from server.pictures.style import LIGHT, ON_DARK, STRONG, for_dark
from tests.comparison_cells import drawn, few

pytestmark = pytest.mark.usefixtures("with_drawings")

ROUNDS = [
    pd.DataFrame(
        {"round": [1, 2], "val_balanced_accuracy": scores, "train_loss": [2.0, 1.0],
         "val_recall_tail": scores, "bytes_down": [8, 9], "bytes_up": [8, 9], "seconds": [1, 2]}
    )
    for scores in ([0.1, 0.4], [0.3, 0.2])
]  # fmt: skip
SHARES = np.array([[np.nan, 0.0, 0.2, 0.5], [0.7, 0.74, 0.9, 1.0]])
HEAT = HeatMap(SHARES, SHARES.astype(str).tolist(), ["a", "b"], list("cdef"), "r", "c", "unit")
SCORES = {"a": [0.1, 0.4], "b": [np.nan], "c": [0.5]}
DRAWN = {
    "heat map": partial(draw_heatmap, HEAT),
    "recall": partial(
        report_bars.draw_recall, SCORES, [(n, "tail", 3) for n in SCORES], SCORES
    ),
    "scores": partial(report_bars.draw_scores, {"m": SCORES}),
    "reliability": partial(report_bars.draw_reliability, [0.2, np.nan], [0.1, np.nan], [5, 0]),
    "curves": partial(report_curves.draw_curves, ROUNDS, [1]),
    "few recipes": partial(report_curves.draw_group_curves, {"a": ROUNDS, "b": ROUNDS}),
    "many recipes": partial(report_curves.draw_group_curves, dict.fromkeys("abcdefg", ROUNDS)),
    "traffic": partial(report_curves.draw_traffic, ROUNDS, ROUNDS),
    **{
        name: partial(getattr(comparison, name), analyse(few(drawn(4, 3)), "fedavg"))
        for name in ("draw_scores", "draw_differences", "draw_recalls")
    },
    "ranks": partial(
        comparison.draw_ranks,
        analyse(few(drawn(4, 12, gain=0.2)), "fedavg").ranks["balanced_accuracy"],
    ),
}  # fmt: skip


def without_names(svg):
    """Names of parts are made of their colours, among others."""
    return re.sub(r'((?<=id=")|#)[a-z][0-9a-f]{10}(?=["\)])', "", svg)


@pytest.mark.parametrize("name", DRAWN)
def test_a_recoloured_drawing_is_the_one_drawn_for_dark_pages(name):
    light, dark = (page._svg(Drawing(DRAWN[name], ""), theme)[0] for theme in (LIGHT, ON_DARK))
    assert "<image" not in light
    assert light != dark
    assert without_names(for_dark(light)) == without_names(dark)


def test_long_names_of_columns_are_tilted_and_the_scale_stays_thin():
    columns = [f"disease number {n} of the skin" for n in range(23)]
    counts = np.ones((50, 23))
    heat = HeatMap(counts, counts.astype(str).tolist(), ["h"] * 50, columns, "r", "c", "u", True)
    with rc_context(LIGHT.style()):
        figure = draw_heatmap(heat, LIGHT)
        figure.draw_without_rendering()
    axes, scale = figure.axes
    shown = [one for one in axes.get_xticklabels() if one.get_visible()]
    assert {one.get_rotation() for one in shown} == {40}
    assert scale.get_window_extent().width < 0.3 * figure.dpi


def test_text_is_legible_on_every_shade():
    def luminance(colour):
        parts = [
            p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in to_rgb(colour)
        ]
        return np.dot(parts, (0.2126, 0.7152, 0.0722)) + 0.05

    for theme in (LIGHT, ON_DARK):
        for number, shade in enumerate(theme.shades):
            ink = theme.inks[number / len(theme.shades) >= STRONG]
            assert max(luminance(ink) / luminance(shade), luminance(shade) / luminance(ink)) > 4


@pytest.mark.filterwarnings("error")
def test_letters_that_the_font_lacks_do_not_fill_the_log():
    page._svg(Drawing(partial(report_bars.draw_scores, {"m": {"中": [0.5]}}), ""), LIGHT)
