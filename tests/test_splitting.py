import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.data.splitting import carve, draw_split
from fedkd.errors import DataError
from fedkd.seeding import rng


def table(rows):
    """Rows of (label, site, group); ids count up."""
    frame = pd.DataFrame(rows, columns=["label", "site", "group"])
    return frame.assign(id=[f"i{row:03d}" for row in range(len(rows))])


def streams(*sites):
    return {site: rng(0, f"test {site}") for site in sites}


def test_a_fraction_of_each_class_of_each_site_is_carved():
    # Half of 4 and of 6, and of 3 rounded half up, which is 2.
    rows = [("a", "x", "")] * 4 + [("b", "x", "")] * 6 + [("a", "y", "")] * 3
    held_out = carve(table(rows), 0.5, streams("x", "y"))
    assert [sum(first <= row < end for row in held_out) for first, end in
            [(0, 4), (4, 10), (10, 13)]] == [2, 3, 2]  # fmt: skip


def test_a_group_too_large_for_what_is_left_stays():
    # One group of 3 and 7 single images: of 10, 2 are wanted, which the group exceeds.
    held_out = carve(table([("a", "x", "g")] * 3 + [("a", "x", "")] * 7), 0.2, streams("x"))
    assert len(held_out) == 2
    assert min(held_out) >= 3


def test_a_stratum_is_never_carved_wholly():
    assert len(carve(table([("a", "x", "")] * 3), 0.99, streams("x"))) == 2
    assert len(carve(table([("a", "x", "")]), 0.99, streams("x"))) == 0


def test_a_split_is_seventy_ten_twenty_by_class():
    rows = [("a", "x", "")] * 100 + [("b", "x", "")] * 10
    split = draw_split(table(rows), "toy", fraction_val=0.1, fraction_test=0.2)
    assert pd.crosstab(np.repeat(["a", "b"], [100, 10]), split).to_numpy().tolist() == [
        [20, 70, 10],
        [2, 7, 1],
    ]


def test_without_a_test_fraction_val_alone_is_drawn():
    split = draw_split(table([("a", "x", "")] * 10), "toy", fraction_val=0.3, fraction_test=0)
    assert split.value_counts().to_dict() == {"train": 7, "val": 3}


def test_columns_of_sites_and_groups_may_be_absent():
    rows = table([("a", "all", "")] * 10)
    whole = draw_split(rows, "toy", fraction_val=0.1, fraction_test=0.2)
    bare = draw_split(rows[["id", "label"]], "toy", fraction_val=0.1, fraction_test=0.2)
    assert bare.equals(whole)


def test_the_order_of_the_rows_does_not_matter_and_the_seed_and_the_name_do():
    rows = table([("a", "x", f"g{row // 2}") for row in range(60)])
    fractions = {"fraction_val": 0.2, "fraction_test": 0.2}
    first = draw_split(rows, "toy", **fractions)
    assert draw_split(rows.iloc[::-1], "toy", **fractions).sort_index().equals(first)
    assert not draw_split(rows, "toy", seed=1, **fractions).equals(first)
    assert not draw_split(rows, "other", **fractions).equals(first)


def test_a_site_does_not_depend_on_the_others():
    rows = table([("a", site, "") for site in "xyz" for _ in range(20)])
    fractions = {"fraction_val": 0.2, "fraction_test": 0.2}
    whole = draw_split(rows, "toy", **fractions)
    kept = rows[rows["site"] != "y"]
    assert draw_split(kept, "toy", **fractions).equals(whole[kept.index])


@pytest.mark.parametrize(
    ("fractions", "text"),
    [
        ((0.1, 0.01), "data.fraction_test is 0.01, which makes no test image of 10 images; raise"),
        ((0.01, 0.2), "data.fraction_val is 0.01, which makes no val image of 10 images; raise it"),
    ],
)
def test_a_fraction_that_gives_no_image_is_refused(fractions, text):
    rows = table([("a", "x", "")] * 10)
    with pytest.raises(DataError, match=text):
        draw_split(rows, "toy", fraction_val=fractions[0], fraction_test=fractions[1])


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 9)),
        min_size=1,
        max_size=60,
    ),
    st.floats(0.05, 0.45),
    st.floats(0.05, 0.45),
)
def test_splits_are_bounded_seeded_and_keep_groups(rows, fraction_val, fraction_test):
    images = table([(label, site, f"g{group}" if group else "") for label, site, group in rows])
    fractions = {"fraction_val": fraction_val, "fraction_test": fraction_test}
    try:
        split = draw_split(images, "toy", **fractions)
    except DataError:
        return
    assert draw_split(images, "toy", **fractions).equals(split)
    assert set(split) == {"train", "val", "test"}
    for part, fraction in (("val", fraction_val), ("test", fraction_test)):
        # Half an image per class and site from rounding, and val may make up for a smaller test.
        share = fraction / (1 - fraction_test) if part == "val" else fraction
        strata = images.groupby(["site", "label"]).ngroups
        assert (split == part).sum() <= share * len(rows) + 0.5 * strata
    known = images["group"] != ""
    assert (split[known].groupby(images["group"][known]).nunique() == 1).all()
