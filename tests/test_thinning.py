"""The numbers and the choice of the long-tail builder; whole data sets: test_thinning_recipe."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedkd import seeding
from fedkd.data.thinning import choose_units, exponential_profile
from fedkd.errors import ConfigError

NAMES = ("a", "b", "c", "d")


def profile(available, factor, ranking=None):
    available = np.array(available, np.int64)
    if ranking is None:
        ranking = np.argsort(-available, kind="stable")
    return exponential_profile(available, factor, np.asarray(ranking)).tolist()


# The exponential profile


def test_equally_large_classes_fall_by_equal_factors_from_all_their_images():
    assert profile([400, 400, 400], 100) == [400, 40, 4]


def test_the_smallest_class_limits_the_others_so_that_the_ratio_is_the_one_asked_for():
    # 8 images at the end allow 80 at the start; sqrt(10) between: 80, 25.3, 8.
    assert profile([4000, 700, 8], 10) == [80, 25, 8]


def test_a_class_in_the_middle_may_be_the_one_that_limits():
    # 30 images at rank 1 allow 60, and 60 / 4 = 15 of the 25.
    assert profile([100, 30, 25], 4) == [60, 30, 15]


def test_factor_one_makes_all_as_large_as_the_smallest():
    assert profile([50, 7, 20], 1) == [7, 7, 7]


def test_a_given_ranking_beats_the_sizes():
    assert profile([400, 400, 4], 4, ranking=[2, 0, 1]) == [2, 1, 4]


def test_ranks_count_only_classes_that_have_images():
    assert profile([0, 100, 0, 100], 10) == [0, 100, 0, 10]


def test_a_single_class_keeps_all_and_no_class_is_no_matter():
    assert profile([0, 9], 50) == [0, 9]
    assert profile([0, 0], 50) == [0, 0]


def test_a_share_below_one_image_is_one():
    assert profile([20, 20], 1000) == [20, 1]


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=30), st.floats(1, 1e6))
def test_every_class_can_supply_its_part_and_none_is_lost(available, factor):
    wanted = profile(available, factor)
    assert all(0 < w <= have if have else w == 0 for w, have in zip(wanted, available, strict=True))
    by_rank = [wanted[c] for c in np.argsort(-np.array(available), kind="stable")]
    assert by_rank == sorted(by_rank, reverse=True)


@given(st.lists(st.integers(0, 3000), min_size=2, max_size=30), st.floats(1, 1000))
def test_the_ratio_is_the_one_asked_for_but_for_rounding(available, factor):
    wanted = [count for count in profile(available, factor) if count]
    if len(wanted) > 1 and min(wanted) > 1:
        large, small = max(wanted), min(wanted)
        assert (large - 0.5) / (small + 0.5) <= factor + 1e-6
        assert (large + 0.5) / (small - 0.5) >= factor - 1e-6


@given(
    st.lists(st.integers(1, 3000), min_size=2, max_size=30), st.integers(1, 999), st.integers(1, 9)
)
def test_more_imbalance_never_shrinks_the_first_class_nor_grows_the_last(available, low, step):
    ranking = np.argsort(-np.array(available), kind="stable")
    first, second = profile(available, low), profile(available, low + step)
    assert second[ranking[0]] >= first[ranking[0]]
    assert second[ranking[-1]] <= first[ranking[-1]]


# The choice of images


@st.composite
def requests(draw, num_classes=4):
    """Units of any sizes and mixes of classes, and numbers of images that can be wanted."""
    sizes = st.dictionaries(st.integers(0, num_classes - 1), st.integers(1, 9), min_size=1)
    huge = st.dictionaries(st.integers(0, num_classes - 1), st.integers(1, 300), min_size=1)
    contents = [Counter(unit) for unit in draw(st.lists(sizes | huge, max_size=25))]
    total = sum(contents, Counter())
    have = [total[number] for number in range(num_classes)]
    wanted = [draw(st.integers(min(1, num), num)) for num in have]
    return contents, np.array(wanted, np.int64), draw(st.integers(0, 5))


def chosen(contents, wanted, seed):
    return choose_units(contents, wanted, NAMES, seeding.rng(seed, "test"))


@given(requests())
def test_no_class_is_lost_and_no_unit_comes_twice(request):
    contents, wanted, _ = request
    kept = chosen(*request)
    assert len(set(kept)) == len(kept)
    counts = sum((contents[unit] for unit in kept), Counter())
    assert all(counts[number] > 0 for number in np.flatnonzero(wanted))


@given(requests())
def test_no_unit_that_is_left_out_would_still_fit(request):
    contents, wanted, _ = request
    kept = chosen(*request)
    counts = sum((contents[unit] for unit in kept), Counter())
    for unit in set(range(len(contents))) - set(kept):
        assert any(counts[c] + num > wanted[c] for c, num in contents[unit].items())


@given(requests())
def test_only_the_first_unit_of_a_class_goes_over_what_is_wanted_and_none_by_less(request):
    contents, wanted, _ = request
    counts = np.zeros(4, np.int64)

    def excess(unit):
        after = counts + [contents[unit][c] for c in range(4)]
        return int((np.maximum(after - wanted, 0) - np.maximum(counts - wanted, 0)).sum())

    for unit in chosen(*request):
        if excess(unit):
            first_of = [c for c in contents[unit] if counts[c] == 0]
            others = [[excess(u) for u in range(len(contents)) if c in contents[u]]
                      for c in first_of]  # fmt: skip
            assert any(excess(unit) == min(values) for values in others)
        counts += [contents[unit][c] for c in range(4)]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), st.data())
def test_single_images_give_exactly_what_is_wanted_and_fewer_are_among_more(labels, data):
    have = np.bincount(labels, minlength=4)
    more = [data.draw(st.integers(min(1, num), int(num))) for num in have]
    fewer = [data.draw(st.integers(min(1, num), num)) for num in more]
    contents = [Counter([label]) for label in labels]
    large, small = (set(chosen(contents, np.array(w, np.int64), 0)) for w in (more, fewer))
    assert np.bincount([labels[unit] for unit in large], minlength=4).tolist() == more
    assert np.bincount([labels[unit] for unit in small], minlength=4).tolist() == fewer
    assert small <= large


@given(requests())
def test_the_same_seed_chooses_the_same(request):
    assert chosen(*request) == chosen(*request)


def test_another_seed_chooses_others():
    contents = [Counter([0])] * 100
    assert chosen(contents, np.array([50, 0, 0, 0]), 0) != chosen(
        contents, np.array([50, 0, 0, 0]), 1
    )


def test_a_class_whose_units_are_all_too_large_keeps_the_one_that_goes_over_least():
    contents = [Counter({0: 9}), Counter({0: 4}), Counter({0: 6})]
    assert chosen(contents, np.array([2, 0, 0, 0]), 0) == [1]


def test_the_unit_that_goes_over_least_is_sought_over_all_its_classes():
    # The second has one image of class 1 only, but would bring 50 of class 0.
    contents = [Counter({1: 3}), Counter({1: 1, 0: 50}), Counter({0: 5})]
    assert chosen(contents, np.array([5, 1, 0, 0]), 0) == [0, 2]


def test_what_is_over_already_does_not_count_again():
    # Class 0 is 5 over after its own unit. The second adds 8 to that, the third 9 of class 1.
    contents = [Counter({0: 6}), Counter({0: 8, 1: 1}), Counter({1: 10})]
    assert chosen(contents, np.array([1, 1, 0, 0]), 0) == [0, 1]


@given(requests(), st.sets(st.integers(0, 3)))
def test_a_class_of_which_none_is_wanted_has_none_or_the_request_is_refused(request, absent):
    contents, wanted, seed = request
    wanted[list(absent)] = 0
    try:
        kept = chosen(contents, wanted, seed)
    except ConfigError:
        # Some class is found only in units that show an absent one.
        assert any(
            all(absent & unit.keys() for unit in contents if number in unit)
            for number in np.flatnonzero(wanted)
        )
    else:
        counts = sum((contents[unit] for unit in kept), Counter())
        assert all((counts[c] > 0) == (wanted[c] > 0) for c in range(4))
