"""What a comparison's numbers allow one to say, in plain words, and what must not be overlooked.

Points are hundredths. Separable means: at least 3 pairs, and p below 0.05 after Holm's correction
for all comparisons of the measure.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from server.comparison.measures import BASELINES, MEASURES, PRIMARY, SPOKEN, is_baseline
from server.comparison.paired import LEVEL, NO_SPREAD, TEST_NAMES, Test, least_wilcoxon_p
from server.comparison.ranks import NOT_INDEPENDENT, Ranking

LEAST_SEEDS = 3
_SHOWN_CELLS = 10


def points(value: float, sign: bool = False) -> str:
    """A fraction in hundredths with one decimal; ``-`` for nan."""
    if math.isnan(value):
        return "-"
    rounded = round(100 * value, 1) + 0.0  # no -0.0
    return f"{rounded:+.1f}" if sign else f"{rounded:.1f}"


def p_text(value: float) -> str:
    """A p-value as one prints it."""
    if math.isnan(value):
        return "-"
    if value < 0.001:
        return "<0.001"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def separable(differences: pd.DataFrame) -> pd.Series:
    """Which rows are separable from the reference, bool (num_rows,)."""
    return (differences["n"] >= LEAST_SEEDS) & (differences["p_holm"] < LEVEL)


def label(arm: str, reference: str) -> str:
    """An arm's name, with what it is if it is no strategy among others."""
    if is_baseline(arm):
        return f"{arm} (baseline)"
    return f"{arm} (reference)" if arm == reference else arm


def interval(row: pd.Series) -> str:
    """A difference in points with its interval."""
    text = f"{points(row['mean'], True)} points"
    if math.isnan(row["low"]):
        return f"{text} (no interval)"
    return f"{text} [{points(row['low'], True)}, {points(row['high'], True)}]"


def sentences_of(
    cells: pd.DataFrame,
    reference: str,
    scores: pd.DataFrame,
    differences: pd.DataFrame,
    ranks: Mapping[str, Ranking],
) -> tuple[list[str], list[str]]:
    """The answer, setting by setting: what balanced accuracy shows; and what else may be said."""
    answer: list[str] = []
    more: list[str] = []
    settings = list(dict.fromkeys(cells["setting"]))
    for setting in settings:
        head = f"{setting}: " if len(settings) > 1 else ""
        own = differences[differences["setting"] == setting]
        untested = bool(len(own)) and bool(own["p"].isna().all())
        if untested:
            answer.append(f"{head}Nothing could be tested against {reference}: no arm has 2 pairs.")
        for metric in () if untested else SPOKEN:
            rows = own[own["metric"] == metric]
            strategies = rows[rows["kind"] == "strategy"]
            for some, what in ((strategies, "strategy"), (rows.drop(strategies.index), "baseline")):
                text = _separation(some, what, reference, metric, differences)
                (answer if metric == PRIMARY else more).extend([head + text] if text else [])
        answer += [head + text for text in _ordering(scores, setting)]
        answer += [head + text for text in _detectable(own, reference)]
        answer += [head + text for text in _identical(own, reference)]
    if differences["p"].notna().any():
        more.append(
            "An interval is 95 % for one difference alone; p-values are corrected for all "
            "comparisons of the measure, so an interval without 0 is not yet a separable arm."
        )
    return answer, more + list(_ranks(ranks, reference))


def _seeds(rows: pd.DataFrame) -> str:
    low, high = int(rows["n"].min()), int(rows["n"].max())
    return f"{low} seeds" if low == high else f"{low} to {high} seeds"


def _one(row: pd.Series) -> str:
    return f"{row['arm']} {interval(row)}, corrected p {p_text(row['p_holm'])}"


def _separation(
    rows: pd.DataFrame, what: str, reference: str, metric: str, all_rows: pd.DataFrame
) -> str:
    """Which of these arms are separable from the reference; empty if none is there."""
    measure = MEASURES.get(metric)
    if rows.empty or measure is None:
        return ""
    where = f"from {reference} in {measure.label}"
    tested = rows[rows["p"].notna()]
    plural = "strategies" if what == "strategy" else "baselines"
    if tested.empty:
        return (
            f"No {what} could be tested against {reference} in {measure.label}: none has 2 pairs."
        )
    untested = rows.drop(tested.index)["arm"].tolist()
    rest = f" Not tested for want of 2 pairs: {', '.join(untested)}." if untested else ""
    sure = tested[separable(tested)].sort_values("p_holm", kind="stable")
    at = f"at {_seeds(tested)}"
    if sure.empty:
        _, least = next(tested.sort_values(["p_holm", "p"], kind="stable").iterrows())
        return (
            f"No {what} is separable {where} {at} (smallest corrected p "
            f"{p_text(least['p_holm'])}, {least['arm']} {interval(least)}).{rest}"
        )
    family = int(all_rows.loc[all_rows["metric"] == metric, "p"].notna().sum())
    text = (
        f"Separable {where} {at}, corrected for {family} "
        f"{'comparison' if family == 1 else 'comparisons'}: "
        f"{'; '.join(_one(row) for _, row in sure.iterrows())}."
    )
    num = len(tested) - len(sure)
    if num:
        be = f"The other {num} {plural} are" if num > 1 else f"The other {what} is"
        text += f" {be} not: neither a difference nor the lack of one is shown."
    return text + rest


def _ordering(scores: pd.DataFrame, setting: str) -> Iterator[str]:
    """Pooled, local and the best strategy by their means."""
    rows = scores[(scores["setting"] == setting) & (scores["metric"] == PRIMARY)]
    rows = rows.dropna(subset=["mean"])
    of_baselines = rows["arm"].map(is_baseline).astype(bool)
    strategies, baselines = rows[~of_baselines], rows[of_baselines]
    if strategies.empty or baselines.empty:
        return
    best = str(strategies.sort_values("mean", ascending=False, kind="stable")["arm"].iloc[0])
    shown = rows[of_baselines | (rows["arm"] == best)]
    shown = shown.sort_values("mean", ascending=False, kind="stable")
    parts = []
    for _, row in shown.iterrows():
        role = ""
        if row["arm"] == best and len(strategies) > 1:
            role = f" (highest mean of {len(strategies)} strategies)"
        parts.append(f"{row['arm']}{role} {points(row['mean'])}")
    text = f"By mean {MEASURES[PRIMARY].label}, in points: {', '.join(parts)}"
    if len(strategies) > 1:
        text += "; the highest of several means is flattered by being picked"
    yield f"{text}. This is an order of means, not a test."


def _detectable(rows: pd.DataFrame, reference: str) -> Iterator[str]:
    """How small a difference would have been seen."""
    some = rows[(rows["metric"] == PRIMARY) & (rows["kind"] == "strategy")]
    some = some.dropna(subset=["low", "high"])
    if some.empty:
        return
    half = float(((some["high"] - some["low"]) / 2).median())
    yield (
        f"At {_seeds(some)} a mean difference to {reference} below about {points(half)} points of "
        f"{MEASURES[PRIMARY].label} would not have been separable even before the correction "
        "(half the 95 % interval of the median strategy)."
    )


def _identical(rows: pd.DataFrame, reference: str) -> Iterator[str]:
    """Arms that may be the reference under another name."""
    same = rows[(rows["metric"] == PRIMARY) & (rows["n"] > 0) & (rows["sd"] == 0)]
    same = same[same["mean"].abs() < NO_SPREAD]
    if len(same):
        yield (
            f"The same {MEASURES[PRIMARY].label} as {reference} at every seed: "
            f"{', '.join(same['arm'])}."
        )


def _ranks(ranks: Mapping[str, Ranking], reference: str) -> Iterator[str]:
    ranking = ranks.get(PRIMARY)
    if ranking is None:
        return
    name = MEASURES[PRIMARY].label
    if ranking.critical_difference is None:
        yield f"No critical difference of ranks in {name}: {ranking.reason}."
        return
    left_out = f" Not ranked, as no cell finished: {', '.join(ranking.left_out)}."
    best, worst = ranking.average.index[0], ranking.average.index[-1]
    text = (
        f"Average ranks in {name} over {ranking.num_blocks} complete blocks (1 is best): "
        f"{best} {ranking.average.iloc[0]:.2f} to {worst} {ranking.average.iloc[-1]:.2f}. "
    )
    if ranking.p >= LEVEL:
        text += (
            f"Friedman's test does not reject that all are equal (p {p_text(ranking.p)}), so ranks "
            "separate nothing."
        )
    else:
        text += (
            f"Friedman's test rejects that all are equal (p {p_text(ranking.p)}); "
            f"{_apart(ranking, reference)} (Nemenyi's critical difference "
            f"{ranking.critical_difference:.2f})."
        )
    yield f"{text}{left_out if ranking.left_out else ''} {NOT_INDEPENDENT}"


def _apart(ranking: Ranking, reference: str) -> str:
    assert ranking.critical_difference is not None, "too few blocks"
    if reference not in ranking.average.index:
        return f"{reference} is not ranked"
    gaps = ranking.average - ranking.average[reference]
    far = gaps[gaps.abs() > ranking.critical_difference]
    if far.empty:
        return f"no strategy is further than the critical difference from {reference}"
    parts = [f"{arm} ({'worse' if gap > 0 else 'better'})" for arm, gap in far.items()]
    return f"further than the critical difference from {reference}: {', '.join(parts)}"


def alarms_of(
    cells: pd.DataFrame, reference: str, test: Test, differences: pd.DataFrame
) -> list[str]:
    """What limits the whole comparison: few seeds, a test without power, cells that are not there.

    Args:
        cells: Of the outcome.
        reference: The arm set against.
        test: ``t`` or ``wilcoxon``.
        differences: As in ``Statistics``.
    """
    found = []
    pairs = differences.loc[differences["metric"] == PRIMARY, "n"]
    most = int(pairs.max()) if len(pairs) else 0
    seeds = int(cells["seed"].nunique())
    if most < LEAST_SEEDS:
        have = f"{most} {'pair' if most == 1 else 'pairs'} per comparison at most"
        found.append(
            f"This comparison shows no uncertainty: it has {have} ({seeds} "
            f"{'seed' if seeds == 1 else 'seeds'} planned), and {LEAST_SEEDS} are the least. "
            "Differences between arms may be those of seeds."
        )
    if test == "wilcoxon" and most:
        family = max(1, int(differences.loc[differences["metric"] == PRIMARY, "p"].notna().sum()))
        least = min(1.0, family * least_wilcoxon_p(most))
        if least >= LEVEL:
            found.append(
                f"{TEST_NAMES[test]} gives no p-value below {p_text(least_wilcoxon_p(most))} with "
                f"{most} pairs, {p_text(least)} after correction for {family} comparisons: it "
                f"cannot reach {LEVEL}, whatever the differences. "
                f'{_pairs_needed(family)} pairs could, or compare.test = "t".'
            )
    found += _lacking(cells)
    absent = [one for one in BASELINES if not any(is_baseline(arm, (one,)) for arm in cells["arm"])]
    if absent:
        found.append(
            f"Not in this comparison: {', '.join(absent)}. Without both baselines nobody can tell "
            "whether federation helps at all, or what it costs."
        )
    return found


def _pairs_needed(family: int) -> int:
    """Fewest pairs with which the smallest corrected p-value is below the level."""
    return math.floor(1 + math.log2(family / LEVEL)) + 1


def _lacking(cells: pd.DataFrame) -> Sequence[str]:
    """Cells that have failed or are missing, by name."""
    rows = cells[cells["status"] != "finished"]
    if rows.empty:
        return []
    names = []
    for row in rows.head(_SHOWN_CELLS).to_dict("records"):
        place = ", ".join(filter(None, (row["setting"], row["arm"], f"seed {row['seed']}")))
        error = f": {row['error']}" if row["error"] else ""
        names.append(f"{place} ({row['status']}{error})")
    more = f"; and {len(rows) - _SHOWN_CELLS} more" if len(rows) > _SHOWN_CELLS else ""
    return [
        f"{len(rows)} of {len(cells)} cells {'is' if len(rows) == 1 else 'are'} not finished, and "
        f"their pairs are left out: {'; '.join(names)}{more}."
    ]
