"""Average ranks of strategies over blocks, Friedman's test and Nemenyi's critical difference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from server.comparison.measures import MEASURES, is_baseline
from server.comparison.paired import LEVEL

LEAST_BLOCKS, LEAST_ARMS = 5, 3
NOT_INDEPENDENT = (
    "The blocks are settings and seeds of one data set, no independent data sets: seeds share test "
    "images, so ranks agree more than they would on new data, and p-value and critical difference "
    "speak of this data set alone."
)


@dataclass(frozen=True, eq=False)
class Ranking:
    """How strategies rank in one measure.

    Attributes:
        metric: The measure.
        average: Mean rank by arm, 1 being the best, best first; empty without a complete block.
        num_blocks: Complete blocks, that is settings x seeds in which every arm has finished.
        left_out: Arms without a finished cell, which are not ranked.
        statistic: Friedman's chi-squared, corrected for ties; nan where not computed.
        p: Its p-value.
        critical_difference: Nemenyi's, in ranks; None where there are too few blocks or arms.
        reason: Why it is None, in words; "" otherwise.
        cliques: Arms that are not separable, as (best, worst) of each maximal run of neighbours.
            All of them in one if Friedman's test does not reject that all are equal.
    """

    metric: str
    average: pd.Series
    num_blocks: int
    left_out: tuple[str, ...]
    statistic: float = math.nan
    p: float = math.nan
    critical_difference: float | None = None
    reason: str = ""
    cliques: tuple[tuple[str, str], ...] = ()


def critical_difference(num_arms: int, num_blocks: int, level: float = LEVEL) -> float:
    """Difference of average ranks beyond which two arms are separable (Nemenyi).

    q sqrt(k (k + 1) / (6 N)), where q is the studentized range over infinitely many degrees of
    freedom, divided by sqrt 2.

    Source: Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 2006.
    """
    q = float(stats.studentized_range.isf(level, num_arms, np.inf)) / math.sqrt(2)
    return q * math.sqrt(num_arms * (num_arms + 1) / (6 * num_blocks))


def cliques(average: pd.Series, width: float) -> tuple[tuple[str, str], ...]:
    """Best and worst arm of every maximal run whose ranks differ by at most ``width``.

    Args:
        average: Ranks by arm, ascending.
        width: The critical difference. Arms that are separable from all others are in no run.
    """
    names, ranks = average.index.tolist(), average.to_numpy(dtype=np.float64)
    found: list[tuple[int, int]] = []
    for first in range(len(ranks)):
        last = int(np.searchsorted(ranks, ranks[first] + width + 1e-12, side="right")) - 1
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return tuple((names[first], names[last]) for first, last in found)


def rank(cells: pd.DataFrame, metric: str) -> Ranking:
    """Rank the strategies in one measure within every block, and average.

    Baselines are not ranked: they are no strategies, and each further arm widens the critical
    difference. Equal scores share the mean of their ranks. A block counts if every ranked arm has
    finished in it. Fewer than 5 complete blocks or 3 arms give no critical difference (our choice:
    below 5 blocks the chi-squared approximation is poor, and with k arms the critical difference is
    about as large as the whole range of ranks; 2 arms are a paired test).

    Args:
        cells: Of an outcome.
        metric: One of ``MEASURES``.
    """
    strategies = cells[~cells["arm"].map(is_baseline)]
    arms = list(dict.fromkeys(strategies["arm"]))
    finished = strategies[strategies["status"] == "finished"].dropna(subset=[metric])
    table = finished.pivot(index=["setting", "seed"], columns="arm", values=metric)
    ranked = [arm for arm in arms if arm in table]
    left_out = tuple(arm for arm in arms if arm not in table)
    table = table[ranked].dropna().round(12)
    sign = -1 if MEASURES[metric].higher_is_better else 1
    ranks = stats.rankdata(sign * table.to_numpy(dtype=np.float64), axis=1)
    if table.empty or len(ranked) < 2:
        why = "no setting and seed in which two strategies or more have all finished"
        return Ranking(metric, pd.Series(dtype=float), 0, left_out, reason=f"there is {why}")
    average = pd.Series(ranks.mean(axis=0), index=ranked).sort_values(kind="stable")
    reason = _too_few(len(table), len(ranked))
    if reason:
        return Ranking(metric, average, len(table), left_out, reason=reason)
    statistic, p = 0.0, 1.0  # where all are equal in every block, which scipy divides by
    if np.ptp(ranks, axis=1).any():
        result = stats.friedmanchisquare(*ranks.T)
        statistic, p = float(result.statistic), float(result.pvalue)
    width = critical_difference(len(ranked), len(table))
    joined = cliques(average, width if p < LEVEL else math.inf)
    return Ranking(metric, average, len(table), left_out, statistic, p, width, "", joined)


def _too_few(num_blocks: int, num_arms: int) -> str:
    parts: Sequence[str] = [
        f"{what}: {have} (at least {least} are needed)"
        for have, least, what in (
            (num_blocks, LEAST_BLOCKS, "complete blocks of setting and seed"),
            (num_arms, LEAST_ARMS, "strategies"),
        )
        if have < least
    ]
    return f"too few {'; '.join(parts)}" if parts else ""
