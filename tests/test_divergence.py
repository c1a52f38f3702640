"""Jensen-Shannon divergence of label distributions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon

from fedkd.partitions.divergence import label_divergence


def test_values_by_hand():
    # p = (1, 0), pooled q = (3/4, 1/4), m = (7/8, 1/8): H(m) - H(q) / 2 with H(p) = 0.
    p_m = -(7 / 8 * np.log2(7 / 8) + 1 / 8 * np.log2(1 / 8))
    p_q = -(3 / 4 * np.log2(3 / 4) + 1 / 4 * np.log2(1 / 4))
    counts = np.array([[2, 0], [4, 2]])
    assert label_divergence(counts)[0] == pytest.approx(p_m - p_q / 2)


def test_the_same_mix_has_none_and_a_single_client_neither():
    assert label_divergence(np.array([[3, 1, 0], [6, 2, 0]])).tolist() == [0.0, 0.0]
    assert label_divergence(np.array([[5, 2]])).tolist() == [0.0]


def test_a_small_client_with_classes_of_its_own_is_near_one():
    large, small = label_divergence(np.array([[10**6, 0], [0, 1]]))
    assert large < 1e-5
    assert 0.99 < small <= 1


def test_a_client_without_images_has_no_value():
    values = label_divergence(np.array([[0, 0], [1, 2]]))
    assert np.isnan(values[0])
    assert values[1] == 0


@given(
    arrays(np.int64, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=st.integers(0, 9))
)
def test_it_is_the_squared_distance_of_scipy(counts):
    counts[:, 0] += 1
    values = label_divergence(counts)
    expected = [jensenshannon(row, counts.sum(axis=0), base=2) ** 2 for row in counts]
    np.testing.assert_allclose(values, expected, atol=1e-7)
    assert values.min() >= 0
    assert values.max() <= 1
