"""The statistics' part of a page: what is drawn, what is told, what is left out."""

import re

import pytest
from matplotlib import rc_context
from matplotlib.colors import to_hex

from server.comparison.statistics import analyse
from server.pictures.comparison import (
    difference_table,
    draw_differences,
    draw_ranks,
    draw_recalls,
    draw_scores,
    sections,
)
from server.pictures.page import Alarm, DataTable, Drawing, render_page
from server.pictures.style import LIGHT, ON_DARK
from tests.comparison_cells import cells_of, drawn, few

pytestmark = pytest.mark.usefixtures("with_drawings")


def drawn_with(draw, *given, theme=LIGHT):
    with rc_context(theme.style()):
        figure = draw(*given, theme)
        figure.draw_without_rendering()
    return figure


def labels(axes):
    return [tick.get_text() for tick in axes.get_yticklabels()]


@pytest.mark.parametrize(
    ("num_arms", "settings", "theme"),
    [
        (2, ("",), ON_DARK),
        (20, ("",), LIGHT),
        (3, ("a", "d" * 90), LIGHT),
        (2, ("a", "b", "c", "d"), LIGHT),
    ],
)
def test_no_name_leaves_the_picture_or_touches_another(num_arms, settings, theme):
    statistics = analyse(few(drawn(num_arms, 3, settings)), "fedavg")
    for draw in (draw_scores, draw_differences, draw_recalls):
        figure = drawn_with(draw, statistics, theme=theme)
        for axes in figure.axes:
            if not axes.get_visible():
                continue
            boxes = [one.get_window_extent() for one in axes.get_yticklabels() if one.get_text()]
            boxes = [box for box in boxes if box.width]
            assert all(box.x0 >= 0 for box in boxes)
            assert all(low.y1 <= high.y0 for low, high in zip(boxes, boxes[1:], strict=False))
            title = axes.title.get_window_extent()
            assert title.x1 <= figure.bbox.x1


def test_scores_show_every_seed_sorted_by_mean():
    scores = {"fedavg": [0.5, 0.6], "krum": [0.8, 0.7], "local": [0.1, 0.2], "bulyan": [None, None]}
    figure = drawn_with(draw_scores, analyse(cells_of(scores), "fedavg"))
    (axes,) = figure.axes
    assert labels(axes) == ["bulyan", "local (baseline)", "fedavg (reference)", "krum"]
    dots = [tuple(dot) for group in axes.collections for dot in group.get_offsets()]
    assert sorted(round(float(x)) for x, _ in dots) == [10, 20, 50, 60, 70, 80]
    assert [text.get_text() for text in axes.texts] == ["no cell finished"]


def test_differences_are_filled_only_where_separable():
    base, noise = [0.50, 0.52, 0.48, 0.51], (0.002, -0.001, 0.001, 0.0)
    scores = {
        "fedavg": base,
        "good": [a + 0.1 + b for a, b in zip(base, noise, strict=True)],
        "wild": [0.9, 0.2, 0.8, 0.1],
    }
    (axes,) = drawn_with(draw_differences, analyse(cells_of(scores), "fedavg")).axes
    points = {
        labels(axes)[int(line.get_ydata()[0])]: to_hex(line.get_markerfacecolor())
        for line in axes.lines
        if line.get_marker() == "o"
    }
    assert points == {"good": "#0072b2", "wild": LIGHT.paper}


def test_ranks_join_what_is_not_separable():
    ranking = analyse(few(drawn(5, 12, gain=0.2)), "fedavg").ranks["balanced_accuracy"]
    figure = drawn_with(draw_ranks, ranking)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert f"critical difference {ranking.critical_difference:.2f}" in texts
    for arm, mean in ranking.average.items():
        assert any(arm in text and f"{mean:.2f}" in text for text in texts)
    bars = [line for line in figure.axes[0].lines if line.get_linewidth() == 4]
    assert len(bars) == len(ranking.cliques) >= 1
    assert "strategy_4" not in {arm for pair in ranking.cliques for arm in pair[1:]}


def test_the_page_has_all_sentences_alarms_and_tables():
    cells = few(drawn(4, 5))
    cells.loc[3, ["status", "error"]] = ["failed", "<b>no luck</b>"]
    statistics = analyse(cells, "fedavg")
    found = sections(statistics)
    assert [one.heading for one in found] == [
        "What the comparison shows", "Scores", "Differences to fedavg", "Ranks",
    ]  # fmt: skip
    words = found[0].blocks
    assert [one.text for one in words if isinstance(one, Alarm)] == statistics.alarms
    assert [one for one in words if isinstance(one, str)] == statistics.sentences
    page = render_page("x", [], found)
    assert "&lt;b&gt;no luck" in page
    assert page.count("<picture>") == sum(
        isinstance(b, Drawing) for one in found for b in one.blocks
    )


def test_too_few_blocks_show_ranks_without_a_diagram():
    ranks = sections(analyse(few(drawn(4, 3)), "fedavg"))[-1]
    assert ranks.heading == "Ranks"
    assert "too few complete blocks of setting and seed: 3" in ranks.blocks[0]
    assert not any(isinstance(one, Drawing) for one in ranks.blocks)


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_few_seeds_make_a_page_too(num_seeds):
    found = sections(analyse(few(drawn(3, num_seeds)), "fedavg"))
    assert isinstance(found[0].blocks[0], Alarm)
    text = render_page("x", [], found)
    assert not re.search(r"\bnan\b", re.sub(r'"data:[^"]*"', "", text))


def test_the_reference_alone_has_no_differences():
    headings = [one.heading for one in sections(analyse(cells_of({"fedavg": [0.5]}), "fedavg"))]
    assert headings == ["What the comparison shows", "Scores"]


def test_the_table_of_differences_says_what_the_numbers_say():
    statistics = analyse(cells_of({"fedavg": [0.5, 0.6, 0.5], "krum": [0.6, 0.6, 0.7]}), "fedavg")
    (row,) = difference_table(statistics, "balanced_accuracy").to_dict("records")
    # differences 10, 0, 20: mean 10, sd 10, half 4.3027 * 10 / sqrt 3 = 24.8; d_z 1 times 0.5642
    assert row == {
        "arm": "krum", "pairs": 3, "lacking": 0, "mean": "+10.0", "sd": "10.0",
        "95 % over seeds": "-14.8 to +34.8", "effect": "+0.56", "wins": "2/3", "p": "0.23",
        "p, Holm": "0.23",
    }  # fmt: skip
    tables = [one for part in sections(statistics) for one in part.blocks
              if isinstance(one, DataTable)]  # fmt: skip
    assert len(tables) == 4
