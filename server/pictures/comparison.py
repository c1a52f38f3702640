"""The part of a comparison's page that shows its statistics: sentences, drawings, tables."""

import functools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from server.comparison.measures import MEASURES, PRIMARY, is_baseline
from server.comparison.paired import LEVEL, TEST_NAMES
from server.comparison.ranks import NOT_INDEPENDENT, Ranking
from server.comparison.sentences import label, p_text, points, separable
from server.comparison.statistics import Statistics
from server.comparison.tables import interval_table, score_table
from server.pictures.page import Alarm, Block, DataTable, Drawing, Section
from server.pictures.style import BLUE, GREEN, GREY, ORANGE, RED, SKY, Theme, short_name

_GROUPS = (
    ("recall_head", "head", SKY, ""),
    ("recall_medium", "medium", ORANGE, "///"),
    ("recall_tail", "tail", RED, "..."),
)
_WIDTH = 9.2
_NAME_LENGTH = 34
_LETTERS = 78  # of a heading as wide as all panels
_MOST_SETTINGS_ABREAST = 3
_SECOND_METRICS = ("recall_tail", "worst_site_balanced_accuracy")


def sections(statistics: Statistics) -> list[Section]:
    """Scores, differences to the reference, recall by class group and ranks, for a page.

    What is not there is left out: drawings of a measure that no cell has, differences where the
    reference is the only arm.
    """
    found = [Section("What the comparison shows", _words(statistics))]
    if PRIMARY in set(statistics.scores["metric"]):
        found.append(Section("Scores", list(_score_blocks(statistics))))
    if len(statistics.differences):
        heading = f"Differences to {statistics.reference}"
        found.append(Section(heading, list(_difference_blocks(statistics))))
    if PRIMARY in statistics.ranks and len(statistics.ranks[PRIMARY].average):
        found.append(Section("Ranks", list(_rank_blocks(statistics.ranks[PRIMARY]))))
    return found


def _words(statistics: Statistics) -> list[Block]:
    return [*(Alarm(text) for text in statistics.alarms), *statistics.sentences]


def _score_blocks(statistics: Statistics) -> list[Block]:
    name = MEASURES[PRIMARY].label
    blocks: list[Block] = [
        "A dot is a seed, a bar the mean, a line the 95 % interval of the mean over seeds "
        "(Student's t). Intervals of two arms may overlap although they are separable, as the same "
        "seeds are paired; see the differences. Scores are of the test split, at the round chosen "
        "on val, in points (hundredths).",
        Drawing(functools.partial(draw_scores, statistics), f"Every seed's {name}, by arm"),
    ]
    for setting in _settings(statistics.scores):
        caption = _caption(setting, statistics)
        blocks.append(DataTable(score_table(statistics, setting), caption))
        intervals = interval_table(statistics, setting)
        blocks.append(DataTable(intervals, f"95 % intervals of {name}{caption and ', '}{caption}"))
    blocks.append(
        "Mean ± standard deviation over seeds. Both bootstraps are too narrow with few seeds; that "
        "over seeds and images draws test lesions or patients anew as well."
    )
    recalls = [column for column, *_ in _GROUPS]
    if set(recalls) & set(statistics.scores["metric"]):
        draw = functools.partial(draw_recalls, statistics)
        blocks.append("Recall of the head, medium and tail classes; lines are ± sd over seeds.")
        blocks.append(Drawing(draw, "Head, medium and tail recall, by arm"))
    return blocks


def _difference_blocks(statistics: Statistics) -> list[Block]:
    family = statistics.differences.groupby("metric")["p"].count()
    num = int(family.get(PRIMARY, 0))
    blocks: list[Block] = [
        f"Differences are paired by seed. Test: {TEST_NAMES[statistics.test]}; p-values are "
        f"corrected by Holm's method for all comparisons of a measure, baselines and settings "
        f"included ({num} of {MEASURES[PRIMARY].label}); intervals are 95 %, each for itself and "
        "not corrected: Student's over seeds, and a bootstrap of seeds and images, too narrow "
        "with few seeds. Effect: Cohen's d_z with Hedges' correction. Filled: corrected "
        f"p below {LEVEL}; hollow: not."
    ]
    for metric in (PRIMARY, *_SECOND_METRICS):
        if metric not in set(statistics.differences["metric"]):
            continue
        text = f"Differences in {MEASURES[metric].label}, with intervals"
        blocks.append(Drawing(functools.partial(draw_differences, statistics, metric=metric), text))
        blocks.append(DataTable(difference_table(statistics, metric), MEASURES[metric].label))
    return blocks


def _rank_blocks(ranking: Ranking) -> list[Block]:
    name = MEASURES[PRIMARY].label
    if ranking.critical_difference is None:
        reason = f"There is no critical-difference diagram: {ranking.reason}."
        table = ranking.average.map("{:.2f}".format).rename_axis("arm").reset_index(name="rank")
        return [reason, DataTable(table, f"average ranks in {name}, 1 is best")]
    draw = functools.partial(draw_ranks, ranking)
    return [
        f"Average ranks in {name} over {ranking.num_blocks} blocks, 1 is best; a thick bar joins "
        f"strategies that are not separable (Friedman p {p_text(ranking.p)}, Nemenyi's critical "
        f"difference {ranking.critical_difference:.2f}). {NOT_INDEPENDENT}",
        Drawing(draw, f"Critical-difference diagram of {name}"),
    ]


def difference_table(statistics: Statistics, metric: str) -> pd.DataFrame:
    """Differences in a measure, in points, as texts."""
    rows = statistics.differences[statistics.differences["metric"] == metric]
    many = len(_settings(rows)) > 1
    shown = [
        {
            "arm": label(str(row["arm"]), statistics.reference),
            **({"setting": row["setting"]} if many else {}),
            "pairs": row["n"],
            "lacking": row["lacking"],
            "mean": points(row["mean"], True),
            "sd": points(row["sd"]),
            "95 % over seeds": _range(row["low"], row["high"]),
            "95 % seeds and images": _range(row["image_low"], row["image_high"]),
            "effect": "-" if math.isnan(row["effect"]) else f"{row['effect']:+.2f}",
            "wins": f"{row['wins']}/{row['n']}",
            "p": p_text(row["p"]),
            "p, Holm": p_text(row["p_holm"]),
        }
        for row in rows.to_dict("records")
    ]
    found = pd.DataFrame(shown)
    if found["95 % seeds and images"].eq("-").all():
        found = found.drop(columns="95 % seeds and images")
    return found


def _range(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{points(low, True)} to {points(high, True)}"


def _settings(frame: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(frame["setting"]))


def _caption(setting: str, statistics: Statistics) -> str:
    return setting if len(_settings(statistics.scores)) > 1 else ""


def _by_mean(scores: pd.DataFrame, metric: str) -> list[str]:
    """Arms by their mean over settings, lowest first, those without a score at the very bottom."""
    own = scores[scores["metric"] == metric]
    means = own.groupby("arm", sort=False)["mean"].mean()
    return means.sort_values(kind="stable", na_position="first").index.tolist()


def _panels(settings: Sequence[str], num_rows: int) -> tuple[Figure, list[Axes]]:
    """A panel per setting, three abreast at most, whose rows are arms."""
    abreast = min(len(settings), _MOST_SETTINGS_ABREAST)
    while abreast > 1 and max(map(len, settings)) > _LETTERS // abreast:
        abreast -= 1
    down = -(-len(settings) // abreast)
    height = down * (0.27 * num_rows + 0.6) + 0.5
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    grid = figure.subplots(down, abreast, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(settings) :]:
        axes.set_visible(False)
    panels = list(grid.flat[: len(settings)])
    for number, (axes, setting) in enumerate(zip(panels, settings, strict=True)):
        if len(settings) > 1:
            axes.set_title(short_name(setting, _LETTERS // abreast), loc="left", fontsize=10)
        # The lowest panel of a column has the numbers, although an empty place may be below it.
        axes.tick_params(labelbottom=number + abreast >= len(settings), length=0, axis="x")
    return figure, panels


def _rows(axes: Axes, arms: Sequence[str], reference: str, theme: Theme) -> None:
    names = [short_name(label(arm, reference), _NAME_LENGTH) for arm in arms]
    axes.set_yticks(range(len(arms)), names)
    axes.set_ylim(-0.7, len(arms) - 0.3)
    axes.tick_params(axis="y", length=0, labelcolor=theme.ink)
    axes.grid(axis="x", color=theme.line, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)


def _colour(arm: str, reference: str) -> str:
    """Of a reference, a baseline, a strategy."""
    if arm == reference:
        return ORANGE
    return GREEN if is_baseline(arm) else BLUE


def draw_scores(statistics: Statistics, theme: Theme, metric: str = PRIMARY) -> Figure:
    """Every seed as a dot, mean and interval by arm, sorted by mean; a panel per setting.

    Args:
        statistics: Of a comparison.
        theme: Colours of the page.
        metric: A measure of which there are scores.
    """
    scores = statistics.scores[statistics.scores["metric"] == metric]
    arms, settings = _by_mean(scores, metric), _settings(scores)
    figure, panels = _panels(settings, len(arms))
    finished = statistics.cells[statistics.cells["status"] == "finished"]
    for axes, setting in zip(panels, settings, strict=True):
        cells = finished[finished["setting"] == setting]
        own = {
            str(row["arm"]): [100 * float(row[name]) for name in ("mean", "low", "high")]
            for row in scores[scores["setting"] == setting].to_dict("records")
        }
        for place, arm in enumerate(arms):
            colour = _colour(arm, statistics.reference)
            values = 100 * cells.loc[cells["arm"] == arm, metric].astype(float)
            axes.scatter(values, np.full(len(values), place), s=16, color=colour, alpha=0.55, lw=0)
            if arm not in own or not len(values.dropna()):
                axes.annotate(
                    "no cell finished", (0.01, place), xycoords=("axes fraction", "data"),
                    va="center", fontsize=8, color=theme.soft,
                )  # fmt: skip
                continue
            mean, low, high = own[arm]
            axes.plot([low, high], [place - 0.22] * 2, color=colour, lw=1.6)
            axes.plot([mean, mean], [place - 0.34, place + 0.3], color=theme.ink, lw=1.8)
        if statistics.reference in own:
            axes.axvline(own[statistics.reference][0], color=ORANGE, lw=1, ls="--", zorder=0)
        _rows(axes, arms, statistics.reference, theme)
    figure.supxlabel(f"{MEASURES[metric].label}, points", fontsize=10, color=theme.ink)
    return figure


def draw_differences(statistics: Statistics, theme: Theme, metric: str = PRIMARY) -> Figure:
    """Forest plot: mean paired differences to the reference with intervals; a panel per setting.

    Filled where the corrected p is below the level, hollow where not.

    Args:
        statistics: Of a comparison with an arm beside the reference.
        theme: Colours of the page.
        metric: A measure of which there are differences.
    """
    rows = statistics.differences[statistics.differences["metric"] == metric]
    rows = rows.assign(sure=separable(rows))
    arms, settings = _by_mean(rows, metric), _settings(rows)
    if not MEASURES[metric].higher_is_better:
        arms = arms[::-1]
    figure, panels = _panels(settings, len(arms))
    for axes, setting in zip(panels, settings, strict=True):
        axes.axvline(0, color=theme.ink, lw=1)
        for row in rows[rows["setting"] == setting].to_dict("records"):
            place, colour = arms.index(row["arm"]), _colour(row["arm"], statistics.reference)
            mean, low, high = (100 * row[key] for key in ("mean", "low", "high"))
            axes.plot([low, high], [place, place], color=colour, lw=1.6, solid_capstyle="butt")
            face = colour if row["sure"] else theme.paper
            axes.plot(mean, place, "o", ms=6.5, mec=colour, mfc=face, mew=1.5)
            if not row["n"]:
                axes.annotate(
                    "no pair", (0.01, place), xycoords=("axes fraction", "data"),
                    va="center", fontsize=8, color=theme.soft,
                )  # fmt: skip
        _rows(axes, arms, statistics.reference, theme)
    better = "right" if MEASURES[metric].higher_is_better else "left"
    text = f"difference in {MEASURES[metric].label}, points ({better} is better)"
    figure.supxlabel(text, fontsize=10, color=theme.ink)
    return figure


def draw_recalls(statistics: Statistics, theme: Theme) -> Figure:
    """Head, medium and tail recall of each arm as bars with sd; a panel per setting."""
    groups = [one for one in _GROUPS if one[0] in set(statistics.scores["metric"])]
    scores = statistics.scores
    arms, settings = _by_mean(scores, PRIMARY), _settings(scores)
    figure, panels = _panels(settings, 2 * len(arms))
    thick = 0.8 / len(groups)
    for axes, setting in zip(panels, settings, strict=True):
        for number, (metric, name, colour, hatch) in enumerate(groups):
            own = scores[(scores["setting"] == setting) & (scores["metric"] == metric)]
            own = own.set_index("arm").reindex(arms)
            places = np.arange(len(arms)) + 0.4 - thick * (number + 0.5)
            axes.barh(
                places, 100 * own["mean"], thick, xerr=100 * own["sd"], color=colour, hatch=hatch,
                edgecolor=theme.paper, label=name, error_kw={"ecolor": theme.ink, "lw": 1},
            )  # fmt: skip
        _rows(axes, arms, statistics.reference, theme)
        axes.set_xlim(0, 100)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, fontsize=9)
    figure.supxlabel("recall, points", fontsize=10, color=theme.ink)
    return figure


def draw_ranks(ranking: Ranking, theme: Theme) -> Figure:
    """Critical-difference diagram: average ranks on a line, joined where not separable.

    Args:
        ranking: One with a critical difference.
        theme: Colours of the page.

    Source: Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 2006
    (figure 1).
    """
    assert ranking.critical_difference is not None, "too few blocks"
    names, ranks = ranking.average.index.tolist(), ranking.average.to_numpy(dtype=float)
    num, step = len(names), 0.3
    left = -(-num // 2)  # the better half has its names on the left
    bars = 0.16 * len(ranking.cliques)
    depth = bars + step * (left + 1)
    figure = Figure(figsize=(_WIDTH, 1.15 + depth), layout="constrained")
    axes = figure.subplots()
    reach = 0.42 * (num - 1)  # what names need on either side
    axes.set(xlim=(1 - reach, num + reach), ylim=(depth, -0.95))
    axes.axis("off")
    axes.plot([1, num], [0, 0], color=theme.ink, lw=1.2)
    for tick in range(1, num + 1):
        axes.plot([tick, tick], [-0.08, 0], color=theme.ink, lw=1.2)
        axes.text(tick, -0.14, str(tick), ha="center", va="bottom", color=theme.ink, fontsize=9)
    _width_bar(axes, ranking.critical_difference, num, theme)
    for number, (first, last) in enumerate(ranking.cliques):
        ends = ranking.average[[first, last]].to_numpy(dtype=float) + (-0.006 * num, 0.006 * num)
        place = 0.14 + 0.16 * number
        axes.plot(ends, [place, place], color=GREY, lw=4, solid_capstyle="butt")
    for number, (name, mean) in enumerate(zip(names, ranks, strict=True)):
        on_left = number < left
        row = number if on_left else num - 1 - number
        place = bars + step * (row + 1)
        end = 1 - 0.03 * num if on_left else num + 0.03 * num
        axes.plot([mean, mean, end], [0, place, place], color=theme.soft, lw=1)
        axes.plot(mean, 0, "o", ms=4, color=BLUE)
        text = f"{short_name(name, 24)}  {mean:.2f}"
        side = "right" if on_left else "left"
        text = text if on_left else f"{mean:.2f}  {short_name(name, 24)}"
        axes.text(end, place, f" {text} ", ha=side, va="center", color=theme.ink, fontsize=9)
    return figure


def _width_bar(axes: Axes, width: float, num: int, theme: Theme) -> None:
    """The critical difference as a length, above the ranks."""
    place = -0.62
    axes.plot([1, 1 + width], [place, place], color=theme.ink, lw=1.6)
    for end in (1, 1 + width):
        axes.plot([end, end], [place - 0.06, place + 0.06], color=theme.ink, lw=1.6)
    axes.text(
        1 + width / 2,
        place - 0.1,
        f"critical difference {width:.2f}",
        ha="center",
        va="bottom",
        color=theme.ink,
        fontsize=9,
    )
