"""server/comparison/paired.py against scipy, statsmodels and hand arithmetic."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from server.comparison.paired import (
    effect_size,
    half_width,
    holm,
    least_wilcoxon_p,
    paired_p,
    spread,
)

FIRST = np.array([0.43, 0.45, 0.46, 0.49])
SECOND = np.array([0.40, 0.44, 0.41, 0.47])


def test_student_is_scipys_paired_test():
    # differences 3, 1, 5, 2: mean 2.75, sd 1.7078, t = 2.75 / 0.8539 = 3.2205, 3 degrees
    found = paired_p(FIRST - SECOND)
    assert found == pytest.approx(stats.ttest_rel(FIRST, SECOND).pvalue)
    assert found == pytest.approx(2 * stats.t.sf(3.2205, 3), rel=1e-4)
    assert half_width([3, 1, 5, 2]) == pytest.approx(3.1824 * 0.85391, rel=1e-4)


def sign_flips(differences):
    """Share of all signs whose rank sum is as far from its middle."""
    values = np.round([one for one in differences if one], 12)
    ranks = stats.rankdata(np.abs(values))
    signs = np.array(list(itertools.product([0, 1], repeat=len(values))))
    far = np.abs(signs @ ranks - ranks.sum() / 2)
    return float(np.mean(far >= abs(ranks[values > 0].sum() - ranks.sum() / 2) - 1e-9))


@pytest.mark.parametrize(
    "differences",
    [
        [1, 2, 3],  # all signs equal: 2 of 8
        [1, 2, 3, 4, 5],
        [-1, 2, 3, 4, -5, 6],
        [1, 1, 2, -1, 3],  # ties
        [0, 1, 2, 3],  # a zero is left out
        [0.3 - 0.2, 0.2 - 0.1, -0.1],  # tied but for rounding
    ],
)
def test_wilcoxon_enumerates_all_signs(differences):
    assert paired_p(differences, "wilcoxon") == pytest.approx(sign_flips(differences))


@pytest.mark.parametrize("num", [2, 3, 5, 6, 10])
def test_the_least_wilcoxon_p_is_that_of_equal_signs(num):
    assert paired_p(np.arange(1.0, num + 1), "wilcoxon") == pytest.approx(least_wilcoxon_p(num))
    assert (least_wilcoxon_p(num) < 0.05) == (num >= 6)


@pytest.mark.parametrize("test", ["t", "wilcoxon"])
def test_differences_without_a_spread(test):
    assert paired_p([0.0, 0.0, 0.0], test) == 1
    # equal, but not 0: 2^(1-n), also where they are equal but for rounding
    assert paired_p([0.1, 0.1, 0.1], test) == 0.25
    assert paired_p([0.3 - 0.2, 0.2 - 0.1, 0.1, 0.1, 0.1], test) == 0.0625
    assert math.isnan(paired_p([0.1], test))
    assert math.isnan(paired_p([], test))


def test_no_spread_no_interval_and_no_effect():
    for values in ([], [0.1], [0.1, 0.1, 0.1], [0.0, 0.0]):
        assert math.isnan(half_width(values))
        assert math.isnan(effect_size(values))
    assert spread([0.3 - 0.2, 0.1]) == 0
    assert math.isnan(spread([0.1]))


def test_effect_size_by_hand():
    # d_z = 2.75 / 1.7078 = 1.6103; J(3) = gamma(1.5) / (sqrt(1.5) gamma(1)) = 0.7236
    assert effect_size([3, 1, 5, 2]) == pytest.approx(1.6103 * 0.7236, rel=1e-4)
    # Hedges' approximation 1 - 3 / (4 m - 1) is near the exact form at m = 9
    values = np.arange(10.0)
    d_z = values.mean() / values.std(ddof=1)
    assert effect_size(values) == pytest.approx(d_z * (1 - 3 / 35), rel=1e-3)
    assert math.isnan(effect_size([1.0, 2.0]))


def test_holm_is_that_of_statsmodels():
    # statsmodels 0.14: multipletests([...], method="holm")[1]
    found = holm([0.01, 0.04, 0.03, 0.005, 0.2, 0.011])
    assert found == pytest.approx([0.05, 0.09, 0.09, 0.03, 0.2, 0.05])


def test_nan_does_not_count_in_the_correction():
    assert holm([math.nan, 0.03, 0.02]) == pytest.approx([math.nan, 0.04, 0.04], nan_ok=True)
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(p_values):
    p, found = np.array(p_values), np.array(holm(p_values))
    order = np.argsort(p, kind="stable")
    assert (np.diff(found[order]) >= 0).all()
    assert (p <= found).all()
    assert (found <= np.minimum(1, len(p) * p).max()).all()
    assert found[order[0]] == min(1, len(p) * p.min())
