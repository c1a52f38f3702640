"""server/comparison/statistics.py: scores, paired differences, what is left out."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fedkd.errors import ConfigError, DataError
from server.comparison.statistics import analyse
from tests.comparison_cells import cells_of, drawn, few

BA = "balanced_accuracy"


def row_of(frame, **keys):
    for name, value in keys.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def test_scores_by_hand():
    # 0.5, 0.6, 0.7: mean 0.6, sd 0.1, t(0.975, 2) = 4.3027, half 0.24842
    found = row_of(analyse(cells_of({"fedavg": [0.5, 0.6, 0.7]}), "fedavg").scores, metric=BA)
    assert (found["n"], found["mean"], found["sd"]) == pytest.approx((3, 0.6, 0.1))
    assert (found["low"], found["high"]) == pytest.approx((0.35158, 0.84842), abs=1e-5)


def test_the_bootstrap_is_near_that_of_all_possible_resamples():
    values = [0.50, 0.53, 0.61, 0.55, 0.52]
    found = row_of(analyse(cells_of({"fedavg": values}), "fedavg").scores, metric=BA)
    means = [np.mean(one) for one in itertools.product(values, repeat=5)]
    oracle = np.quantile(means, [0.025, 0.975])
    assert (found["boot_low"], found["boot_high"]) == pytest.approx(oracle, abs=2e-3)
    assert found["low"] < found["boot_low"]  # which is too narrow


def test_differences_are_paired_by_seed_whatever_the_order_of_cells():
    rng = np.random.default_rng(0)
    base = rng.random(5)
    scores = {"fedavg": list(base), "fedadam": list(base + 0.1 * rng.random(5))}
    frame = cells_of(scores)
    found = row_of(analyse(frame, "fedavg").differences, metric=BA)
    oracle = stats.ttest_rel(scores["fedadam"], scores["fedavg"])
    assert found["p"] == pytest.approx(oracle.pvalue)
    assert (found["low"], found["high"]) == pytest.approx(tuple(oracle.confidence_interval()))
    assert (found["n"], found["wins"], found["lacking"]) == (5, 5, 0)
    mixed = analyse(frame.sample(frac=1, random_state=3), "fedavg").differences
    pd.testing.assert_series_equal(row_of(mixed, metric=BA), found, check_names=False)


def test_a_failed_cell_leaves_its_pair_out_and_is_counted():
    scores = {"fedavg": [0.5, None, 0.5, 0.6], "krum": [0.6, 0.9, None, 0.8]}
    found = row_of(analyse(cells_of(scores), "fedavg").differences, arm="krum")
    assert (found["n"], found["lacking"], found["wins"]) == (2, 2, 2)
    assert found["mean"] == pytest.approx(0.15)


def test_a_number_of_an_unfinished_cell_is_not_used():
    frame = cells_of({"fedavg": [0.5, 0.6]})
    frame.loc[1, "status"] = "missing"
    assert row_of(analyse(frame, "fedavg").scores, metric=BA)["mean"] == 0.5


def test_holm_counts_all_settings_and_arms_of_one_measure():
    frame = few(drawn(4, 5, settings=("a", "b")))
    found = analyse(frame, "fedavg").differences
    for metric, rows in found.groupby("metric"):
        assert len(rows) == 2 * (3 + 2), metric
        assert rows["p_holm"].min() == pytest.approx(min(1, 10 * rows["p"].min()))
    assert set(found.loc[found["kind"] == "baseline", "arm"]) == {"local", "pooled"}


def test_wins_of_an_error_are_those_that_are_lower():
    frame = cells_of({"fedavg": [0.2, 0.2, 0.2], "krum": [0.1, 0.1, 0.3]}, metric="ece")
    assert row_of(analyse(frame, "fedavg").differences, metric="ece")["wins"] == 2


def test_one_seed_has_no_spread_no_interval_and_no_test():
    found = analyse(cells_of({"fedavg": [0.5], "krum": [0.6]}), "fedavg")
    columns = ["sd", "low", "high", "boot_low", "boot_high"]
    assert found.scores[columns].isna().all().all()
    assert found.differences[["sd", "low", "high", "effect", "p", "p_holm"]].isna().all().all()
    assert found.differences["mean"].iloc[0] == pytest.approx(0.1)


def test_another_arm_or_setting_changes_no_score_of_the_others():
    frame = few(drawn(4, 5))
    less = frame[frame["arm"] != "strategy_3"]
    some, all_ = (analyse(cells, "fedavg").scores for cells in (less, frame))
    all_ = all_[all_["arm"] != "strategy_3"].reset_index(drop=True)
    pd.testing.assert_frame_equal(some, all_)


def test_measures_that_nobody_has_are_left_out():
    frame = cells_of({"fedavg": [0.5], "krum": [0.6]}).assign(mcc=math.nan)
    assert set(analyse(frame, "fedavg").scores["metric"]) == {BA}


def test_errors_say_what_to_do():
    frame = cells_of({"fedavg": [0.5], "fedadam": [0.6]})
    with pytest.raises(ConfigError, match=r"'fedadm', which is no arm .* did you mean 'fedadam'"):
        analyse(frame, "fedadm")
    with pytest.raises(ConfigError, match=r"compare.test is 'z'; allowed are t, wilcoxon"):
        analyse(frame, "fedavg", "z")
    with pytest.raises(DataError, match="lack the columns status, run"):
        analyse(frame.drop(columns=["status", "run"]), "fedavg")
    with pytest.raises(DataError, match="arm 'fedavg' and seed 0 is there more than once"):
        analyse(pd.concat([frame, frame]), "fedavg")
