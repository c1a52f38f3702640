"""Average ranks, Friedman and Nemenyi, against scipy and Demšar's figures (JMLR 2006)."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from server.comparison.ranks import cliques, critical_difference, rank
from tests.comparison_cells import cells_of, drawn


def test_critical_values_are_those_of_demsars_table():
    # q at 0.05 for 2..10 classifiers: CD sqrt(6 N / (k (k + 1)))
    table = (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164)
    for num_arms, q in enumerate(table, start=2):
        found = critical_difference(num_arms, 1) * math.sqrt(6 / (num_arms * (num_arms + 1)))
        assert found == pytest.approx(q, abs=1.2e-3), num_arms


def test_demsars_worked_example():
    # C4.5 and three variants on 14 data sets: CD 1.25 at 0.05 and 1.12 at 0.10; C4.5 is separable
    # from the two best at 0.10 and from none at 0.05.
    average = pd.Series({"cf+m": 1.964, "m": 2.000, "cf": 2.893, "plain": 3.143})
    width = critical_difference(4, 14)
    assert width == pytest.approx(1.25, abs=0.005)
    assert cliques(average, width) == (("cf+m", "plain"),)
    wide = critical_difference(4, 14, level=0.1)
    assert wide == pytest.approx(1.12, abs=0.005)
    assert cliques(average, wide) == (("cf+m", "cf"), ("cf", "plain"))


def test_an_arm_far_from_all_is_in_no_clique():
    average = pd.Series({"a": 1.0, "b": 3.0, "c": 3.2, "d": 4.9})
    assert cliques(average, 1.0) == (("b", "c"),)
    assert cliques(average, 0.1) == ()


def test_ranks_by_hand_with_a_tie():
    # seed 0: a 1, b 2.5, c 2.5; seed 1: b 1, a 2, c 3
    found = rank(
        cells_of({"a": [0.9, 0.5], "b": [0.8, 0.6], "c": [0.8, 0.4], "local": [1, 1]}),
        "balanced_accuracy",
    )
    assert found.average.to_dict() == {"a": 1.5, "b": 1.75, "c": 2.75}
    assert found.num_blocks == 2
    assert found.critical_difference is None
    assert found.reason == (
        "too few complete blocks of setting and seed: 2 (at least 5 are needed)"
    )


def test_lower_is_better_for_errors():
    found = rank(cells_of({"a": [0.1], "b": [0.3]}, metric="ece"), "ece")
    assert found.average.to_dict() == {"a": 1, "b": 2}


def test_friedman_is_scipys_and_only_complete_blocks_count():
    rng = np.random.default_rng(0)
    scores = {arm: list(0.5 + 0.1 * rng.random(7)) for arm in "abcd"}
    scores["a"][2] = None
    found = rank(cells_of(scores), "balanced_accuracy")
    kept = [np.delete(np.array(scores[arm], float), 2) for arm in "abcd"]
    oracle = stats.friedmanchisquare(*kept)
    assert (found.statistic, found.p) == pytest.approx((oracle.statistic, oracle.pvalue))
    assert found.num_blocks == 6
    assert found.critical_difference == pytest.approx(2.569 * math.sqrt(20 / 36), rel=1e-3)
    assert found.p > 0.05
    assert len(found.cliques) == 1
    assert set(found.cliques[0]) == {found.average.index[0], found.average.index[-1]}


def test_an_arm_without_a_cell_is_left_out_and_named():
    scores = {"a": [0.5] * 5, "b": [0.6] * 5, "c": [0.7] * 5, "d": [None] * 5}
    found = rank(cells_of(scores), "balanced_accuracy")
    assert found.left_out == ("d",)
    assert found.average.to_dict() == {"c": 1, "b": 2, "a": 3}
    assert found.p < 0.05


def test_blocks_are_settings_times_seeds_and_equal_arms_are_not_separable():
    parts = [cells_of(dict.fromkeys("abc", [0.5, 0.5, 0.5]), setting) for setting in "xy"]
    found = rank(pd.concat(parts), "balanced_accuracy")
    assert found.num_blocks == 6
    assert (found.statistic, found.p) == (0, 1)
    assert found.average.to_dict() == dict.fromkeys("abc", 2.0)


def test_two_arms_have_no_critical_difference():
    found = rank(drawn(2, 5), "balanced_accuracy")
    assert found.reason == "too few strategies: 2 (at least 3 are needed)"
    assert rank(cells_of({"a": [None], "b": [0.5]}), "balanced_accuracy").average.empty is True
