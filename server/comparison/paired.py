"""Paired differences over seeds: tests, intervals, effect sizes, correction for many comparisons.

Two rules for differences without a spread (sd below ``NO_SPREAD``, which is rounding), where
Student's t is 0/0 or infinite. All of them 0: p = 1. All of them equal, but not 0: p = 2^(1-n), the
least that n pairs give in a sign-flip test, since n equal numbers do not show that the next is
equal too (our choice; the formula's limit, p = 0, would claim a certainty that no n supports).
Neither has an interval.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special, stats

LEVEL = 0.05
NO_SPREAD = 1e-12
Test = Literal["t", "wilcoxon"]
TEST_NAMES = {"t": "paired t test", "wilcoxon": "Wilcoxon's signed-rank test, exact"}
# Up to here all signs of tied ranks are enumerated, as scipy does by itself.
_MOST_TIED = 13
_MOST_EXACT = 50


def spread(values: Sequence[float] | npt.NDArray[np.float64]) -> float:
    """Standard deviation with n - 1; nan with fewer than two values, 0 if it is only rounding."""
    if len(values) < 2:
        return math.nan
    found = float(np.std(values, ddof=1))
    return 0.0 if found < NO_SPREAD else found


def half_width(values: Sequence[float] | npt.NDArray[np.float64], level: float = LEVEL) -> float:
    """Half of Student's interval of the mean, at confidence 1 - ``level``.

    A mean difference smaller than that is not separable from 0 at this level. nan with fewer than
    two values or without a spread.
    """
    sd = spread(values)
    if not sd > 0:
        return math.nan
    return float(stats.t.isf(level / 2, len(values) - 1)) * sd / math.sqrt(len(values))


def paired_p(differences: Sequence[float] | npt.NDArray[np.float64], test: Test = "t") -> float:
    """Two-sided p-value of the hypothesis that paired differences are around 0.

    Args:
        differences: One per pair, float (n,).
        test: ``t`` (their mean is 0 and they are normal) or ``wilcoxon`` (symmetric around 0;
            zeros are left out, as Wilcoxon did). Its distribution is exact to 50 pairs, with tied
            ranks to 13, beyond that the normal approximation.

    Returns:
        nan with fewer than two pairs; see the module for differences without a spread.
    """
    values = np.asarray(differences, np.float64)
    if len(values) < 2:
        return math.nan
    if np.all(np.abs(values) < NO_SPREAD):
        return 1.0
    if test == "t":
        if spread(values) == 0:
            return 2.0 ** (1 - len(values))
        return float(stats.ttest_1samp(values, 0).pvalue)
    values = np.round(values, 12)  # rounding of the scores hides ties
    values = values[values != 0]
    tied = len(np.unique(np.abs(values))) < len(values)
    if not tied and len(values) <= _MOST_EXACT:
        return float(stats.wilcoxon(values, method="exact").pvalue)
    if len(values) <= _MOST_TIED:
        every = stats.PermutationMethod(n_resamples=2**_MOST_TIED)
        return float(stats.wilcoxon(values, method=every).pvalue)
    return float(stats.wilcoxon(values).pvalue)


def least_wilcoxon_p(num_pairs: int) -> float:
    """Smallest two-sided p-value that Wilcoxon's exact test can give: all signs equal."""
    return min(1.0, 2.0 ** (1 - num_pairs))


def effect_size(differences: Sequence[float] | npt.NDArray[np.float64]) -> float:
    """Cohen's d_z with Hedges' correction: mean over sd of the differences, times J(n - 1).

    J(m) = Γ(m/2) / (√(m/2) Γ((m-1)/2)) takes away the bias of small samples. nan with fewer than
    three pairs (J(1) = 0) and where the differences do not vary.

    Source: Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988 (d_z); Hedges,
    "Distribution theory for Glass's estimator of effect size", Journal of Educational Statistics
    1981 (J, exact form).
    """
    sd, freedom = spread(differences), len(differences) - 1
    if freedom < 2 or sd == 0:
        return math.nan
    log_ratio = special.gammaln(freedom / 2) - special.gammaln((freedom - 1) / 2)
    return float(np.mean(differences)) / sd * math.exp(log_ratio) / math.sqrt(freedom / 2)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number; nan stays nan and does not count.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal
    of Statistics 1979.
    """
    order = [i for i in np.argsort(p_values, kind="stable") if not math.isnan(p_values[i])]
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, (len(order) - rank) * p_values[index])
        corrected[index] = min(largest, 1.0)
    return corrected
