import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd.data.images import GroupBounds
from fedkd.data.longtail import exponential_counts, head_medium_tail, realised_imbalance
from fedkd.errors import DataError


def test_counts_by_hand():
    # Factor 4 over 3 classes: 1, 1/2, 1/4 of the largest; 70 images are 40 + 20 + 10.
    assert exponential_counts(70, 3, 4).tolist() == [40, 20, 10]


def test_what_rounding_leaves_goes_to_the_largest_remainder():
    # 72 images: shares 41.14, 20.57, 10.29; the one left over goes to the second class.
    assert exponential_counts(72, 3, 4).tolist() == [41, 21, 10]


def test_factor_one_is_balanced():
    assert exponential_counts(10, 5, 1).tolist() == [2, 2, 2, 2, 2]
    assert exponential_counts(11, 5, 1).tolist() == [3, 2, 2, 2, 2]


def test_classes_below_one_image_get_one_and_the_others_share_the_rest():
    # Shares of 12 at factor 10000: 11.43, 0.53, 0.02, 0.001; three singles leave 9.
    assert exponential_counts(12, 4, 10_000).tolist() == [9, 1, 1, 1]


def test_as_many_images_as_classes_gives_one_each():
    assert exponential_counts(8, 8, 100).tolist() == [1] * 8


def test_one_class_takes_all():
    assert exponential_counts(5, 1, 100).tolist() == [5]


@given(
    num_classes=st.integers(1, 40),
    extra=st.integers(0, 5000),
    factor=st.floats(1, 1e6, allow_nan=False),
)
def test_counts_sum_to_the_total_fall_and_are_never_zero(num_classes, extra, factor):
    counts = exponential_counts(num_classes + extra, num_classes, factor)
    assert counts.dtype == np.int64
    assert counts.sum() == num_classes + extra
    assert counts.min() >= 1
    assert (np.diff(counts) <= 0).all()


def test_realised_factor_is_the_one_asked_for():
    counts = exponential_counts(100_000, 8, 50)
    assert counts[0] / counts[-1] == pytest.approx(50, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((7, 8, 10), "num_images is 7; 8 classes need at least one image each"),
        ((10, 0, 10), "num_classes is 0"),
        ((10, 2, 0.5), "imbalance_factor is 0.5; it must be a finite number >= 1"),
        ((10, 2, float("nan")), "imbalance_factor is nan"),
        ((10, 2, float("inf")), "imbalance_factor is inf"),
    ],
)
def test_impossible_requests_are_refused(arguments, text):
    with pytest.raises(DataError, match=text):
        exponential_counts(*arguments)


@pytest.mark.parametrize(("counts", "ratio"), [([143, 7, 1], 143), ([0, 5, 2, 0], 2.5), ([3], 1)])
def test_the_realised_imbalance_is_over_classes_that_have_images(counts, ratio):
    assert realised_imbalance(np.array(counts)) == ratio


def test_the_realised_imbalance_of_no_images_is_not_a_number():
    assert np.isnan(realised_imbalance(np.array([0, 0])))


def groups(counts):
    return [group.tolist() for group in head_medium_tail(np.array(counts, np.int64))]


def test_groups_of_ham10000():
    # akiec bcc bkl df mel nv vasc: head nv mel, medium bkl bcc, tail akiec vasc df.
    assert groups([228, 359, 768, 80, 778, 4693, 98]) == [[5, 4], [2, 1], [0, 6, 3]]


def test_groups_of_eight_classes():
    assert groups([80, 70, 60, 50, 40, 30, 20, 10]) == [[0, 1], [2, 3, 4], [5, 6, 7]]


def test_published_bounds_are_strict_on_both_sides():
    counts = np.array([70, 701, 69, 700, 0, 1000])
    head, medium, tail = head_medium_tail(counts, GroupBounds(tail_below=70, head_above=700))
    assert [group.tolist() for group in (head, medium, tail)] == [[5, 1], [3, 0], [2, 4]]


def test_bounds_may_leave_a_group_empty():
    groups = head_medium_tail(np.array([5, 9]), GroupBounds(tail_below=70, head_above=700))
    assert [group.tolist() for group in groups] == [[], [], [1, 0]]


def test_classes_without_training_image_end_the_tail():
    assert groups([0, 9, 5, 1, 0]) == [[1], [2], [3, 0, 4]]


def test_equal_counts_go_by_index():
    assert groups([5, 5, 5]) == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([], [[], [], []]),
        ([0, 0], [[], [], [0, 1]]),
        ([3], [[0], [], []]),
        ([1, 3], [[1], [], [0]]),
    ],
)
def test_groups_of_fewer_than_three_present_classes(counts, expected):
    assert groups(counts) == expected


@given(st.lists(st.integers(0, 20), max_size=30))
def test_every_class_is_in_exactly_one_group(counts):
    head, medium, tail = groups(counts)
    assert sorted(head + medium + tail) == list(range(len(counts)))


def test_negative_count_is_refused():
    with pytest.raises(DataError, match="count of class 1 is -2"):
        groups([3, -2])
