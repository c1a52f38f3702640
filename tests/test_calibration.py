"""Reliability bins and expected calibration error: by hand, by a plain loop, by torchmetrics."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.calibration import expected_calibration_error, reliability

# torchmetrics 1.9.0, multiclass_calibration_error(probabilities, labels, num_classes=5,
# n_bins=n, norm="l1") on drawn(seed), in float32: seed, 15 bins, 10 bins.
TORCHMETRICS = [
    (0, 0.28499308228492737, 0.2849932312965393),
    (1, 0.3643517792224884, 0.3643517792224884),
    (2, 0.3485666811466217, 0.3485666513442993),
]


def drawn(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, 400)
    return labels, rng.dirichlet(np.full(5, 0.6), 400)


def ece(labels, probabilities, num_bins=15):
    return expected_calibration_error(reliability(labels, probabilities, num_bins))


def two_classes(*confidences):
    return np.array([[value, 1 - value] for value in confidences])


def test_bins_and_their_error_worked_by_hand():
    # Confidences 0.6 (right), 0.7 (wrong), 0.9 (right), 1.0 (right), in five bins:
    # (0.4, 0.6] holds 0.6; (0.6, 0.8] holds 0.7; (0.8, 1] holds 0.9 and 1.
    bins = reliability(np.array([0, 1, 0, 0]), two_classes(0.6, 0.7, 0.9, 1.0), 5)
    assert bins["num_images"] == [0, 0, 1, 1, 2]
    assert bins["confidence"][2:] == pytest.approx([0.6, 0.7, 0.95])
    assert bins["accuracy"][2:] == [1.0, 0.0, 1.0]
    assert all(math.isnan(value) for key in ("confidence", "accuracy") for value in bins[key][:2])
    assert expected_calibration_error(bins) == pytest.approx((0.4 + 0.7 + 2 * 0.05) / 4)


def test_an_edge_belongs_to_the_bin_below_it_and_certainty_to_the_last():
    thirds = np.full((1, 3), 1 / 3)
    assert reliability(np.array([0]), thirds)["num_images"].index(1) == 4  # (4/15, 5/15]
    assert reliability(np.array([0]), two_classes(0.6))["num_images"].index(1) == 8  # (8/15, 9/15]
    assert reliability(np.array([0]), two_classes(1.0))["num_images"].index(1) == 14
    assert reliability(np.array([0]), np.ones((1, 1)), 1)["num_images"] == [1]


@pytest.mark.parametrize(("seed", "with_15", "with_10"), TORCHMETRICS)
def test_the_error_is_that_of_torchmetrics(seed, with_15, with_10):
    assert ece(*drawn(seed)) == pytest.approx(with_15, abs=1e-6)
    assert ece(*drawn(seed), 10) == pytest.approx(with_10, abs=1e-6)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), num=st.integers(1, 60), num_bins=st.integers(1, 20))
def test_the_error_is_that_of_a_plain_loop(seed, num, num_bins):
    rng = np.random.default_rng(seed)
    labels, probabilities = rng.integers(0, 4, num), rng.dirichlet(np.ones(4), num)
    total = 0.0
    for k in range(num_bins):
        inside = [
            i for i in range(num) if k / num_bins < max(probabilities[i]) <= (k + 1) / num_bins
        ]
        right = sum(probabilities[i].argmax() == labels[i] for i in inside)
        total += abs(right - sum(max(probabilities[i]) for i in inside)) / num
    assert ece(labels, probabilities, num_bins) == pytest.approx(total, abs=1e-12)


def test_always_right_and_sure_is_0_and_always_wrong_and_sure_is_1():
    labels = np.array([0, 1, 1])
    assert ece(labels, np.eye(2)[labels]) == 0
    assert ece(labels, np.eye(2)[1 - labels]) == 1


def test_equal_scores_predict_the_first_class_here_too():
    assert ece(np.array([0]), np.full((1, 2), 0.5)) == 0.5
    assert ece(np.array([1]), np.full((1, 2), 0.5)) == 0.5
    assert reliability(np.array([0]), np.full((1, 2), 0.5))["accuracy"][7] == 1
    assert reliability(np.array([1]), np.full((1, 2), 0.5))["accuracy"][7] == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("row", [[0.5, 0.4], [2.0, 1.0], [1.5, -0.5], [0.0, 0.0]])
def test_scores_that_are_no_probabilities_have_no_calibration(row):
    bins = reliability(np.array([0, 0]), np.array([[0.5, 0.5], row]))
    assert bins["num_images"] == [0] * 15
    assert math.isnan(expected_calibration_error(bins))


@pytest.mark.filterwarnings("error")
def test_no_image_has_no_calibration():
    assert math.isnan(ece(np.zeros(0, np.int64), np.zeros((0, 3))))


def test_float32_rows_count_as_probabilities():
    labels, probabilities = drawn(0)
    assert ece(labels, probabilities.astype(np.float32)) == pytest.approx(
        ece(labels, probabilities), abs=1e-6
    )
