"""Is a teacher worth distilling from: rows, differences and the verdict."""

import dataclasses

import numpy as np
import pytest
import torch

from fedkd.data.images import Splits
from fedkd.errors import DataError
from fedkd.metrics import evaluate
from fedkd.probing import worth
from fedkd.probing.controls import Reader
from fedkd.probing.linear import Difference, lesion_bootstrap
from fedkd.teachers.config import TeacherConfig
from fedkd.teachers.loading import open_teacher
from tests.conftest import CLASSES, draw_images

READER = Reader(torch.device("cpu"), 16, lambda *_: None)
SPLITS = Splits(
    draw_images("train", [0] * 24 + [1] * 12 + [2] * 6),  # "d" has no training image
    draw_images("val", [0, 1, 2, 3] * 4),
    draw_images("test", [0, 1, 2] * 4),
)


def features(split, strength):
    """Noise, and the class as far as ``strength`` shows it."""
    labels = getattr(SPLITS, split).labels
    noise = np.random.default_rng(len(labels)).normal(size=(len(labels), 6))
    noise[np.arange(len(labels)), labels] += strength
    return noise.astype(np.float32)


def all_features(*splits):
    strengths = {worth.TEACHER: 20, worth.RAW: 0, worth.UNTRAINED: 20}
    return {
        kind: {split: features(split, strength) for split in ("train", *splits)}
        for kind, strength in strengths.items()
    }


@pytest.fixture(scope="module")
def rows():
    return worth.judge(SPLITS, all_features("val", "test"), READER, seed=0)


def test_there_is_a_row_for_each_split_method_and_kind_of_features(rows):
    assert [(row.split, row.method, row.features) for row in rows] == [
        (split, method, kind)
        for split in ("val", "test")
        for method in ("knn", "linear")
        for kind in (worth.TEACHER, worth.RAW, worth.UNTRAINED)
    ]


def test_without_test_features_the_test_split_is_not_looked_at(rows):
    only_val = worth.judge(SPLITS, all_features("val"), READER, seed=0)
    assert {row.split for row in only_val} == {"val"}
    for seen, row in zip(only_val, rows, strict=False):
        assert np.array_equal(seen.predictions, row.predictions)


def test_a_class_without_training_images_has_recall_zero(rows):
    teacher = rows[0]
    assert teacher.scores.recall_per_class == {"a": 1, "b": 1, "c": 1, "d": 0}
    assert teacher.scores.balanced_accuracy == 0.75
    # Two head and medium classes of three present; the absent one joins the tail.
    assert teacher.scores.recall["tail"] == 0.5


def test_knn_looks_past_what_all_features_have_in_common():
    moved = {k: {s: x + 1e3 for s, x in own.items()} for k, own in all_features("val").items()}
    row = worth.judge(SPLITS, moved, READER, seed=0)[0]
    assert (row.method, row.scores.balanced_accuracy) == ("knn", 0.75)


def test_controls_have_the_difference_to_the_teacher(rows):
    by_kind = {row.features: row for row in rows if (row.split, row.method) == ("test", "linear")}
    assert by_kind[worth.TEACHER].minus is None
    assert by_kind[worth.UNTRAINED].minus == Difference(0, 0, 0, 12)
    raw = by_kind[worth.RAW]
    assert raw.minus.value == pytest.approx(1 - raw.scores.balanced_accuracy)
    assert 0 < raw.minus.low <= raw.minus.value <= raw.minus.high


def row(features, minus=None, method="linear", split="val"):
    labels = np.array([0, 1])
    scores = evaluate(labels, np.eye(2), labels * 0, ("a", "b"), ("all",), {"tail": [1]})
    return worth.Row(features, method, split, 0.1, scores, labels, minus)


@pytest.mark.parametrize(
    ("raw", "untrained", "text"),
    [
        (
            Difference(0.061, -0.06, 0.155, 20),
            Difference(0.092, 0.029, 0.161, 20),
            "On val (2 images, linear probe) the teacher is better than raw 16x16 pixels by 6.1 "
            "points of balanced accuracy (95 % interval -6.0 to +15.5, which includes 0: it may "
            "be chance); it is better than untrained network by 9.2 points of balanced accuracy "
            "(95 % interval +2.9 to +16.1, which does not include 0). So it is not shown to be "
            "worth distilling from: these images cannot tell.",
        ),
        (
            Difference(0.1, 0.05, 0.2, 20),
            Difference(0.1, 0.05, 0.2, 20),
            "So it is worth distilling from, by this probe.",
        ),
        (
            Difference(0.1, 0.05, 0.2, 20),
            Difference(-0.1, -0.2, -0.05, 20),
            "worse than untrained network by 10.0 points of balanced accuracy (95 % interval "
            "-20.0 to -5.0, which does not include 0). So it is not worth distilling from, by "
            "this probe.",
        ),
        (
            Difference(0.0, -0.1, 0.1, 20),
            Difference(0.0, 0.0, 0.0, 20),
            "neither better nor worse than raw 16x16 pixels (95 % interval -10.0 to +10.0, which "
            "includes 0: it may be chance)",
        ),
    ],
)
def test_the_verdict_says_by_how_much_and_whether_it_may_be_chance(raw, untrained, text):
    given = [row(worth.TEACHER), row(worth.RAW, raw), row(worth.UNTRAINED, untrained)]
    assert text in worth.verdict(given)


def test_two_images_give_no_verdict_however_sure_their_interval_looks():
    labels, groups = np.array([0, 1]), ["p", "q"]
    sure = lesion_bootstrap(labels, labels, 1 - labels, groups, seed=0)
    assert sure == Difference(1, 1, 1, 2)
    text = worth.verdict([row(worth.TEACHER), row(worth.RAW, sure), row(worth.UNTRAINED, sure)])
    assert text.endswith(
        "So it is not shown to be worth distilling from: 2 lesions, patients or images are too few "
        "for such intervals."
    )


def test_the_verdict_is_about_the_linear_probe_on_the_last_split():
    bad, good = Difference(-0.1, -0.2, -0.05, 20), Difference(0.1, 0.05, 0.2, 20)
    rows = [row(worth.RAW, bad), row(worth.RAW, bad, "knn", "test"),
            row(worth.RAW, good, "linear", "test")]  # fmt: skip
    assert worth.verdict(rows).startswith("On test (2 images, linear probe) the teacher is better")


def test_the_table_has_plain_numbers(rows):
    first, second = worth.table(rows)[:2]
    assert first["balanced_accuracy"] == 0.75
    assert first["strength"] is None
    assert first["teacher_minus_this"] is None
    assert second["low"] <= second["teacher_minus_this"] <= second["high"]


def test_features_are_read_of_all_three_kinds():
    config = TeacherConfig()
    read = worth.read_features(config, open_teacher(config), SPLITS, READER, 0, with_test=False)
    assert {kind: {s: x.shape for s, x in own.items()} for kind, own in read.items()} == {
        worth.TEACHER: {"train": (42, 480), "val": (16, 480)},
        worth.RAW: {"train": (42, 768), "val": (16, 768)},
        worth.UNTRAINED: {"train": (42, 480), "val": (16, 480)},
    }
    assert not np.allclose(read[worth.TEACHER]["val"], read[worth.UNTRAINED]["val"])


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_an_empty_split_is_refused_if_it_is_read(name):
    none = getattr(SPLITS, name).subset([])
    splits = dataclasses.replace(SPLITS, **{name: none})
    with pytest.raises(DataError, match=f"the {name} split is empty, which a probe needs"):
        worth.check(splits, ["val", "test"])
    if name == "test":
        worth.check(splits, ["val"])


def test_training_images_of_one_class_are_refused():
    splits = Splits(SPLITS.train.subset(range(20)), SPLITS.val, SPLITS.test)
    assert CLASSES[0] == "a"
    with pytest.raises(DataError) as caught:
        worth.check(splits, ["val"])
    assert str(caught.value) == (
        "all 20 training images are of class 'a'; a probe needs images of two classes at least: "
        "choose another data set or split"
    )
