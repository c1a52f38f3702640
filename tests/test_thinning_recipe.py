"""The long-tail builder on data sets and in recipes: lesions whole, val and test untouched."""

import logging
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd import config
from fedkd.data.images import GroupBounds, LabelledImages, Splits
from fedkd.data.longtail import realised_imbalance
from fedkd.data.sets import folder
from fedkd.data.sets.folder import FolderConfig
from fedkd.data.thinning import LongTailConfig, thin
from fedkd.errors import ConfigError
from fedkd.experiment import open_data, open_experiment
from fedkd.recipe import Recipe
from server import simulate
from server.cli import main
from tests.isic_files import decode_nothing

NAMES = ("a", "b", "c", "d")
LESIONS = {"name": "lesions", "size": 16, "num_train": 200, "num_sites": 2,
           "num_val_per_class": 1, "num_test_per_class": 1}  # fmt: skip


def images_of(labels, groups=(), names=NAMES):
    labels = np.asarray(labels, np.int64)
    pixels = np.zeros((len(labels), 3, 1, 1), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(len(labels)) % 256
    ids = tuple(f"image-{row}" for row in range(len(labels)))
    return LabelledImages(pixels, labels, names, ids=ids, groups=tuple(groups))


def splits_of(labels, groups=()):
    return Splits(images_of(labels, groups), images_of([0, 1, 2, 3]), images_of([3, 2, 1, 0]))


def thinned(labels, groups=(), **settings):
    return thin(config.build(LongTailConfig, settings), splits_of(labels, groups)).train


def test_published_bounds_are_left_behind_only_where_images_are():
    bounds = GroupBounds(tail_below=4, head_above=8)
    splits = replace(splits_of([0] * 9 + [1] * 9 + [2] * 3 + [3]), bounds=bounds)
    assert thin(LongTailConfig(counts={"a": 2}), splits).bounds is None
    assert thin(LongTailConfig(counts={"a": 9}), splits).bounds == bounds
    assert thin(LongTailConfig(), splits).bounds == bounds


def test_one_group_of_all_images_stays_whole():
    train = thinned([0] * 9 + [1] * 3 + [2], ["one"] * 13, imbalance_factor=2)
    assert len(train) == 13


def test_images_keep_their_order_and_everything_that_belongs_to_them():
    labels = [0, 1, 0, 2, 3, 0, 1, 0, 0, 1, 2, 0]
    before = images_of(labels, [f"patient-{row}" for row in range(12)])
    before = replace(before, sites=np.arange(12) % 2, site_names=("x", "y"))
    given_splits = Splits(before, images_of([0]), images_of([1]))
    after = thin(LongTailConfig(counts={"a": 3, "b": 2}), given_splits).train
    rows = [int(name.removeprefix("image-")) for name in after.ids]
    assert rows == sorted(rows)
    assert np.array_equal(after.images, before.images[rows])
    assert np.array_equal(after.labels, before.labels[rows])
    assert np.array_equal(after.sites, before.sites[rows])
    assert after.groups == tuple(before.groups[row] for row in rows)
    assert after.class_counts().tolist() == [3, 2, 2, 1]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["", "p", "q", "r", "s"])), max_size=40),
    st.floats(1, 100),
)
def test_groups_stay_or_leave_whole_and_val_and_test_are_the_same_objects(rows, factor):
    splits = splits_of([label for label, _ in rows], [group for _, group in rows])
    after = thin(LongTailConfig(imbalance_factor=factor), splits)
    assert after.val is splits.val
    assert after.test is splits.test
    before, now = Counter(splits.train.groups), Counter(after.train.groups)
    assert all(now[group] in (0, before[group]) for group in "pqrs")
    assert set(after.train.labels) == set(splits.train.labels)


def test_without_a_key_and_where_all_stay_nothing_is_copied():
    splits = splits_of([0, 0, 1, 2, 3])
    assert thin(LongTailConfig(), splits) is splits
    assert thin(LongTailConfig(counts={"a": 2}), splits) is splits


def test_classes_that_are_not_named_keep_all():
    assert thinned([0] * 5 + [1] * 4 + [2] * 3, counts={"b": 1}).class_counts().tolist() == [
        5, 1, 3, 0,
    ]  # fmt: skip


def test_a_count_of_zero_takes_the_class_out_with_the_groups_that_show_it():
    train = thinned([0, 0, 0, 1, 1], ["", "p", "", "p", ""], counts={"b": 0})
    assert train.ids == ("image-0", "image-2")
    assert train.class_names == NAMES


def test_the_order_of_classes_can_be_given():
    train = thinned([0] * 40 + [1] * 40 + [2] * 40 + [3] * 40, imbalance_factor=8,
                    order=["d", "b", "c", "a"])  # fmt: skip
    assert train.class_counts().tolist() == [5, 20, 10, 40]


def test_the_choice_hangs_on_its_own_seed_not_on_the_seed_of_the_recipe(make_recipe):
    def ids(**changes):
        return open_data(make_recipe(data=LESIONS, **changes))[0].train.ids

    tail = {"imbalance_factor": 3}
    assert ids(long_tail=tail, seed=0) == ids(long_tail=tail, seed=1)
    assert ids(long_tail=tail) != ids(long_tail={**tail, "seed": 1})


def test_the_log_tells_what_was_asked_for_and_what_came_of_it(caplog):
    caplog.set_level(logging.INFO)
    labels, groups = [0] * 6 + [1] * 6 + [2] * 6, [""] * 12 + ["lesion"] * 6
    thinned(labels, groups, imbalance_factor=4)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "long tail: 15 of 18 training images stay; largest : smallest class 2 : 1, asked 4 : 1; "
        "images kept / wanted / in the data: a 6 / 6 / 6, b 3 / 3 / 6, c 6 / 2 / 6, d 0 / 0 / 0"
    )


# In a recipe


def test_clients_share_the_images_that_are_left(make_recipe):
    recipe = make_recipe(data=LESIONS, long_tail={"imbalance_factor": 2})
    splits, divided = open_data(recipe)
    assert len(splits.train) < 200
    rows = np.concatenate(divided.indices)
    assert np.array_equal(np.sort(rows), np.arange(len(splits.train)))


@pytest.mark.parametrize("centralized", [False, True])
def test_the_summary_holds_the_images_that_were_trained_on(make_recipe, centralized):
    recipe = make_recipe(data=LESIONS, long_tail={"imbalance_factor": 2}, num_rounds=1,
                         objective={"name": "supervised"}, num_clients=1)  # fmt: skip
    result = simulate(recipe, centralized=centralized)
    train = open_data(recipe)[0].train
    counts = result.summary["train_counts"]
    assert list(counts) == list(train.class_names)
    assert list(counts.values()) == train.class_counts().tolist()
    assert result.summary["train_imbalance"] == max(counts.values()) / min(counts.values())
    assert result.summary["train_imbalance"] == pytest.approx(2, abs=0.5)


def test_the_section_is_refused_beside_given_sites(make_recipe, hospitals):
    text = "long_tail is given together with sites; .* leave the section out"
    with pytest.raises(ConfigError, match=text):
        open_experiment(make_recipe(long_tail={"imbalance_factor": 2}), **hospitals)


def test_the_command_partition_prints_the_ratio_with_and_without_the_section(tmp_path, capsys):
    path = tmp_path / "tiny.toml"
    path.write_text("[data]\nsize = 16\nnum_train = 200\nnum_sites = 2\n")
    plain, tail = "long_tail.seed=0", "long_tail.imbalance_factor=2"
    said = []
    for override in (plain, tail):
        assert main(["partition", str(path), override, "--output", str(tmp_path / override)]) == 0
        out, err = capsys.readouterr()
        said.append([line for line in out.splitlines() if line.startswith("largest : smallest")])
        assert ("long tail: " in err) == (override == tail)
    (before,), (after,) = said
    splits = open_data(config.load(Recipe, path, [tail]))[0]
    assert after.endswith(f" = {realised_imbalance(splits.train.class_counts()):.4g} : 1")
    assert before != after


def test_the_section_survives_saving(tmp_path):
    tail = {"counts": {"a b": 3, "c.d": 0}, "seed": 4}
    recipe = config.build(Recipe, {"long_tail": tail})
    for text in (config.dump(recipe), config.explain(recipe)):
        path = tmp_path / "a.toml"
        path.write_text(text)
        assert config.load(Recipe, path) == recipe


# What is refused


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"imbalance_factor": 0.5}, "imbalance_factor is 0.5 .* greater than or equal to 1"),
        ({"imbalance_factor": 1e7}, "imbalance_factor is 1.*less than or equal to 1000000"),
        ({"counts": {"a": -1}}, "counts.a is -1 .* greater than or equal to 0"),
        ({"counts": {"a": 1}, "imbalance_factor": 2}, "both given; .* keep one of them"),
        ({"order": ["a"]}, "order is given without long_tail.imbalance_factor"),
        (
            {"order": ["a", "b", "a"], "imbalance_factor": 2},
            "order names 'a' more than once; name each class once",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(values, text):
    with pytest.raises(ConfigError, match=text):
        config.build(Recipe, {"long_tail": values})


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"counts": {"nevu": 1, "xyz": 2}},
            "long_tail.counts names classes that the data set does not have: 'nevu' (did you mean "
            "'nevus'?), 'xyz'; its classes are nevus, melanoma",
        ),
        (
            {"imbalance_factor": 2, "order": ["nevus", "melanom"]},
            "long_tail.order names classes that the data set does not have: 'melanom' (did you "
            "mean 'melanoma'?); its classes are nevus, melanoma",
        ),
        (
            {"imbalance_factor": 2, "order": ["nevus"]},
            "long_tail.order does not name 'melanoma'; it must name all 2 classes, or be left out",
        ),
        (
            {"counts": {"nevus": 4, "melanoma": 9}},
            "long_tail.counts asks for more training images than there are: nevus (4 of 3), "
            "melanoma (9 of 2); lower these numbers, or leave the class out to keep all its images",
        ),
        (
            {"counts": {"nevus": 0, "melanoma": 0}},
            "long_tail.counts leaves no training image of any class; ask for more than 0 of one",
        ),
        (
            {"counts": {"nevus": 0}},
            "long_tail.counts would leave no image of 'melanoma': each shows a lesion or patient "
            "that also has images of a class of which 0 are wanted; set the count of 'melanoma' to "
            "0 too, or the other's above 0",
        ),
    ],
)
def test_requests_that_do_not_fit_the_data_are_refused(settings, text):
    names = ("nevus", "melanoma")
    train = images_of([0, 0, 1, 0, 1], ["", "p", "p", "q", "q"], names)
    with pytest.raises(ConfigError) as caught:
        thin(LongTailConfig(**settings), Splits(train, train, train))
    assert str(caught.value) == text


# Real images


@pytest.mark.realdata
def test_ham10000_gets_the_ratio_asked_for_with_lesions_whole(realdata, tmp_path, monkeypatch):
    decode_nothing(monkeypatch)
    place = realdata / "ham10000"
    data = FolderConfig(images=str(place / "images"), csv=str(place / "metadata.csv"),
                        label_column="dx", site_column="source", group_column="lesion_id",
                        size=32)  # fmt: skip
    before = folder.load(data, tmp_path)
    after = thin(LongTailConfig(imbalance_factor=100), before)
    # akiec bcc bkl df mel nv vasc; mel with its 778 limits: 778 * 100^(1/6) = 1676.
    assert after.train.class_counts().tolist() == [78, 168, 361, 17, 778, 1676, 36]
    full, left = Counter(before.train.groups), Counter(after.train.groups)
    assert all(full[group] == number for group, number in left.items())
