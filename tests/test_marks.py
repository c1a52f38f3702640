import logging

import numpy as np
import pytest

from fedkd import config
from fedkd.data.images import LabelledImages, Splits
from fedkd.data.pixels import Selection
from fedkd.data.streaming import FilePixels
from fedkd.errors import ConfigError
from fedkd.experiment import open_data, open_experiment
from fedkd.fourier.rings import radii
from fedkd.recipe import Recipe
from fedkd.shortcuts import marks
from fedkd.shortcuts.marks import MarkedPixels, ShortcutConfig, mark, moved, unmarked

NAMES, SITES = ("nv", "mel", "bcc"), ("north", "south")


def settings(**values):
    return config.build(ShortcutConfig, {"class": "nv", **values})


def some_images(split, num=30, size=16, dtype=np.uint8):
    value = 128 if dtype == np.uint8 else 0.5
    return LabelledImages(
        images=np.full((num, 3, size, size), value, dtype),
        labels=np.arange(num) % 3,
        class_names=NAMES,
        sites=np.arange(num) // 3 % 2,
        site_names=SITES,
        ids=tuple(f"{split}-{row}" for row in range(num)),
    )


def some_splits(**values):
    return Splits(*(some_images(split, **values) for split in ("train", "val", "test")))


def changed(images):
    """Rows whose pixels are not grey any more."""
    return np.flatnonzero(np.ptp(np.asarray(images.images), axis=(1, 2, 3)) > 0)


def test_without_a_class_the_splits_are_the_same_objects():
    splits = some_splits()
    assert mark(ShortcutConfig(), splits) is splits


def test_with_certainty_all_images_of_the_class_are_marked_in_every_split_and_no_other():
    marked = mark(settings(degradation=1.0), some_splits())
    for images in (marked.train, marked.val, marked.test):
        assert changed(images).tolist() == np.flatnonzero(images.labels == 0).tolist()
    none = mark(settings(degradation=0.0), some_splits())
    assert len(changed(none.train)) == 0


def test_a_probability_is_kept_and_low_degradations_are_within_higher_ones():
    splits = some_splits(num=3000, size=8)
    rows = {
        d: {row for row, name in enumerate(
            mark(settings(degradation=d), splits).train.images.streams) if name}
        for d in (0.25, 0.5, 0.75)
    }  # fmt: skip
    assert rows[0.25] < rows[0.5] < rows[0.75]
    for d, found in rows.items():
        # Of 1000: within four standard deviations, sqrt(1000 d (1 - d)) <= 15.8.
        assert abs(len(found) - 1000 * d) < 64


def test_marks_depend_on_seed_split_and_id_alone():
    splits, one = some_splits(), settings(degradation=0.5)
    first = mark(one, splits)
    order = np.arange(30)[::-1]
    second = mark(one, Splits(*(i.subset(order) for i in (splits.train, splits.val, splits.test))))
    assert np.array_equal(np.asarray(second.train.images)[::-1], np.asarray(first.train.images))
    few = first.train.subset([6, 0])
    assert np.array_equal(np.asarray(few.images), np.asarray(first.train.images)[[6, 0]])
    other = mark(settings(degradation=0.5, seed=1), splits)
    assert changed(other.train).tolist() != changed(first.train).tolist()
    renamed = Splits(splits.val, splits.val, splits.val)
    assert changed(mark(one, renamed).train).tolist() != changed(mark(one, renamed).val).tolist()


def test_a_mark_has_its_strength_and_its_band_and_is_grey():
    splits = some_splits(size=32)
    row = np.asarray(mark(settings(degradation=1.0), splits).train.images)[0] / 255
    assert np.array_equal(row[0], row[1])
    assert np.array_equal(row[0], row[2])
    pattern = row[0] - 128 / 255
    assert np.sqrt(np.mean(pattern**2)) == pytest.approx(0.03, rel=0.01)
    power, radius = np.abs(np.fft.fft2(pattern)) ** 2, radii(32, 32).numpy()
    inside = (radius >= 0.3) & (radius < 0.5)
    assert power[inside].sum() / power.sum() > 0.99


def test_patterns_are_drawn_for_each_image_or_one_for_all():
    splits = some_splits()
    own, fixed = (
        np.asarray(mark(settings(degradation=1.0, pattern=p), splits).train.images)
        for p in ("per_image", "fixed")
    )
    assert np.array_equal(fixed[0], fixed[3])
    assert not np.array_equal(own[0], own[3])


def test_only_the_sites_named_leave_a_mark(caplog):
    caplog.set_level(logging.INFO, logger=marks.__name__)
    images = mark(settings(degradation=1.0, sites=["south"]), some_splits()).train
    assert changed(images).tolist() == [3, 9, 15, 21, 27]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("shortcut: images of 'nv' with a mark in the band 0.3 to 0.5, strength")
    assert "train 5 of 10 (north 0 of 5, south 5 of 5); val 5 of 10" in line


@pytest.mark.parametrize(("other", "labels"), [("mel", [1]), ("", [1, 2])])
def test_out_of_distribution_the_mark_is_on_the_other_class_instead(other, labels):
    one = settings(degradation=1.0, other=other)
    test = mark(one, some_splits()).test
    expected = np.flatnonzero(np.isin(test.labels, labels)).tolist()
    assert changed(moved(one, test, "test")).tolist() == expected
    assert len(changed(unmarked(test))) == 0
    assert len(changed(unmarked(test.subset(range(len(test)))))) == 0


def test_a_user_of_the_store_is_not_changed_and_floats_stay_floats():
    splits = some_splits(dtype=np.float32)
    images = mark(settings(degradation=1.0), splits).train
    assert np.asarray(images.images).dtype == np.float32
    assert (splits.train.images == 0.5).all()


def test_streamed_images_are_marked_when_they_are_read(tmp_path):
    from PIL import Image

    files = []
    for row in range(4):
        files.append(tmp_path / f"{row}.png")
        Image.fromarray(np.full((16, 16, 3), 128, np.uint8)).save(files[-1])
    streamed = MarkedPixels(FilePixels(files, 16), ["", "a", "", "b"], settings())
    stored = MarkedPixels(np.full((4, 3, 16, 16), 128, np.uint8), ["", "a", "", "b"], settings())
    plan = [np.array([1, 0]), np.array([3]), np.array([], np.int64)]
    for one, two in zip(streamed.batches(plan), stored.batches(plan), strict=True):
        assert np.array_equal(one, two)
    assert np.array_equal(np.asarray(Selection(streamed, np.array([3, 2]))), stored[[3, 2]])


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"class": "nevus"}, "shortcut.class names 'nevus', which the data set does not have"),
        ({"class": "mle"}, "did you mean 'mel'?"),
        ({"other": "x"}, "shortcut.other names 'x'"),
        (
            {"sites": ["noth"]},
            "shortcut.sites names 'noth', which the data set does not have; did ",
        ),
        ({"band": [0.01, 0.1]}, "images of 16x16 px have no frequency; they have one every 0.125"),
    ],
)
def test_what_the_data_set_does_not_have_is_refused(values, text):
    with pytest.raises(ConfigError) as caught:
        mark(settings(**values), some_splits())
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"other": "nv"}, "shortcut.class and shortcut.other are both 'nv'"),
        ({"band": [0.5, 1.5]}, "shortcut.band is [0.5, 1.5]"),
        ({"band": [-0.1, 0.5]}, "with 0 <= low < high < 1.42"),
        ({"band": [0.5, 0.5]}, "shortcut.band is [0.5, 0.5]"),
        ({"degradation": 1.2}, "shortcut.degradation is 1.2"),
        ({"num_folds": 1}, "shortcut.num_folds is 1; it must be 2 or more"),
        ({"num_folds": 3, "fold": 3}, "shortcut.fold is 3 but shortcut.num_folds is 3"),
        ({"class": "", "degradation": 0.7}, "shortcut.degradation is given without shortcut.class"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(values, text):
    with pytest.raises(ConfigError) as caught:
        config.build(Recipe, {"shortcut": {"class": "nv", **values}})
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_is_told_the_name_that_a_recipe_has():
    with pytest.raises(ConfigError, match=r"did you mean shortcut\.class\?"):
        config.load(Recipe, None, ["shortcut.clas=nv"])


def test_a_recipe_with_marks_is_written_and_read_again(tmp_path):
    recipe = config.load(Recipe, None, ["shortcut.class=nv", "shortcut.band=[0.1,0.2]"])
    (tmp_path / "a.toml").write_text(config.dump(recipe))
    again = config.load(Recipe, tmp_path / "a.toml")
    assert again == recipe
    assert again.hash() == recipe.hash()
    assert 'class = "nv"' in config.explain(recipe)


def test_marks_are_part_of_hash_and_data_set_and_their_absence_is_not():
    plain, marked = Recipe(), config.load(Recipe, None, ["shortcut.class=NV"])
    assert "shortcut" not in plain.data_set()
    assert marked.data_set()["shortcut"]["class"] == "NV"
    stronger = config.load(Recipe, None, ["shortcut.class=NV", "shortcut.strength=0.05"])
    assert len({plain.hash(), marked.hash(), stronger.hash()}) == 3


def small(*overrides):
    keys = ["data.size=16", "data.num_train=80", "data.imbalance_factor=2",
            "data.num_val_per_class=4", "data.num_test_per_class=4", "num_clients=2",
            "partition.name=iid", "objective.name=supervised", "shortcut.class=NV"]  # fmt: skip
    return config.load(Recipe, None, [*keys, *overrides])


def test_of_a_pair_only_two_classes_are_left_unless_it_says_otherwise():
    splits, _ = open_data(small("shortcut.other=MEL"))
    assert splits.train.class_names == ("MEL", "NV")
    assert set(splits.test.labels.tolist()) == {0, 1}
    splits, _ = open_data(small("shortcut.other=MEL", "shortcut.pair_only=false"))
    assert len(splits.train.class_names) == 8


def test_marks_go_with_a_long_tail():
    plain, _ = open_data(small("long_tail.counts.NV=5", "shortcut.degradation=0"))
    marked, _ = open_data(small("long_tail.counts.NV=5", "shortcut.degradation=1"))
    differ = (np.asarray(plain.train.images) != np.asarray(marked.train.images)).any((1, 2, 3))
    assert differ.sum() == 5
    assert differ.tolist() == (marked.train.labels == 1).tolist()


def test_kept_features_know_marked_from_unmarked_images():
    keys = ("objective.name=ekd", "teacher.views=clean")
    clean, marked = (open_experiment(small(*keys, f"shortcut.degradation={d}")) for d in (0, 1))
    rows = clean.partition.indices[0]
    ours = np.flatnonzero(clean.splits.train.labels[rows] == 1)
    theirs = np.flatnonzero(clean.splits.train.labels[rows] != 1)
    one, two = (e.kept_features[0] for e in (clean, marked))
    assert (one.of(ours, None) != two.of(ours, None)).any(1).all()
    assert (one.of(theirs, None) - two.of(theirs, None)).abs().max() < 1e-5


def test_marks_on_given_sites_are_refused(hospitals, make_recipe):
    recipe = make_recipe(shortcut={"class": "a"})
    with pytest.raises(ConfigError, match=r"^shortcut\.class is given together with sites; it"):
        open_experiment(recipe, **hospitals)
