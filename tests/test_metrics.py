import json
import math
import warnings

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedkd import metrics
from fedkd.errors import DataError

# Rows true, columns predicted:
#   recalls 3/4, 1/2, 2/2; F1 6/7, 2/4, 4/5; 6 of 8 right; chance agreement (4*3 + 2*2 + 2*3) / 64.
BY_HAND = np.array([[3, 1, 0], [0, 1, 1], [0, 0, 2]])
NAMES = ("nv", "mel", "bcc")
GROUPS = {"head": [0], "medium": [1], "tail": [2]}


def random_problem(seed, num_classes=6, absent=(), num=200):
    rng = np.random.default_rng(seed)
    present = [number for number in range(num_classes) if number not in absent]
    labels = rng.choice(present, num)
    probabilities = rng.dirichlet(np.ones(num_classes), num)
    probabilities[np.arange(num), labels] += 0.3
    return labels, probabilities / probabilities.sum(axis=1, keepdims=True)


def test_confusion_matrix_has_true_rows_and_predicted_columns():
    confusion = metrics.confusion_matrix(np.array([0, 0, 2]), np.array([1, 1, 2]), 3)
    assert confusion.dtype == np.int64
    assert confusion.tolist() == [[0, 2, 0], [0, 0, 0], [0, 0, 1]]


def test_three_by_three_worked_by_hand():
    assert metrics.accuracy(BY_HAND) == 6 / 8
    assert metrics.recall_per_class(BY_HAND).tolist() == [3 / 4, 1 / 2, 1.0]
    assert metrics.balanced_accuracy(BY_HAND) == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    assert metrics.macro_f1(BY_HAND) == pytest.approx((6 / 7 + 2 / 4 + 4 / 5) / 3)
    chance = (4 * 3 + 2 * 2 + 2 * 3) / 64
    assert metrics.cohen_kappa(BY_HAND) == pytest.approx((6 / 8 - chance) / (1 - chance))
    true, predicted = 64 - (16 + 4 + 4), 64 - (9 + 4 + 9)
    assert metrics.mcc(BY_HAND) == pytest.approx((6 * 8 - 22) / math.sqrt(true * predicted))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("absent", [(), (2,), (0, 5)])
def test_counts_agree_with_sklearn(seed, absent):
    labels, probabilities = random_problem(seed, absent=absent)
    predictions = probabilities.argmax(axis=1)
    confusion = metrics.confusion_matrix(labels, predictions, 6)
    assert np.array_equal(
        confusion, sklearn.metrics.confusion_matrix(labels, predictions, labels=range(6))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sklearn warns of classes predicted but absent
        expected = sklearn.metrics.balanced_accuracy_score(labels, predictions)
    assert metrics.balanced_accuracy(confusion) == pytest.approx(expected)
    assert metrics.mcc(confusion) == pytest.approx(
        sklearn.metrics.matthews_corrcoef(labels, predictions)
    )
    assert metrics.cohen_kappa(confusion) == pytest.approx(
        sklearn.metrics.cohen_kappa_score(labels, predictions)
    )
    assert metrics.macro_f1(confusion) == pytest.approx(
        sklearn.metrics.f1_score(labels, predictions, average="macro", labels=np.unique(labels))
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decimals", [16, 1])  # one decimal: many ties
def test_auroc_agrees_with_sklearn(seed, decimals):
    labels, probabilities = random_problem(seed, absent=(3,))
    probabilities = probabilities.round(decimals)
    expected = [
        sklearn.metrics.roc_auc_score(labels == number, probabilities[:, number])
        for number in (0, 1, 2, 4, 5)
    ]
    assert metrics.macro_auroc(labels, probabilities) == pytest.approx(np.mean(expected), abs=1e-12)


def test_constant_scores_have_auroc_one_half():
    assert metrics.macro_auroc(np.array([0, 1, 1, 2]), np.full((4, 3), 1 / 3)) == 0.5


def test_a_class_predicted_but_absent_costs_no_term_of_macro_f1():
    confusion = np.array([[3, 1], [0, 0]])
    assert metrics.macro_f1(confusion) == pytest.approx(6 / 7)
    assert sklearn.metrics.f1_score([0, 0, 0, 0], [0, 0, 0, 1], average="macro") == pytest.approx(
        6 / 14
    )


@pytest.mark.filterwarnings("error")
def test_an_absent_class_has_nan_recall_and_enters_no_mean():
    confusion = np.array([[4, 0, 0], [1, 1, 2], [0, 0, 0]])
    assert metrics.recall_per_class(confusion)[:2].tolist() == [1.0, 0.25]
    assert math.isnan(metrics.recall_per_class(confusion)[2])
    assert metrics.balanced_accuracy(confusion) == pytest.approx(0.625)
    assert metrics.group_recall(confusion, [1, 2]) == 0.25
    assert math.isnan(metrics.group_recall(confusion, [2]))
    assert math.isnan(metrics.group_recall(confusion, []))


@pytest.mark.filterwarnings("error")
def test_a_single_class_is_scored_as_sklearn_does():
    perfect, half = np.array([[4, 0], [0, 0]]), np.array([[2, 2], [0, 0]])
    assert metrics.mcc(perfect) == 0
    assert metrics.mcc(half) == sklearn.metrics.matthews_corrcoef([0, 0, 0, 0], [0, 0, 1, 1]) == 0
    assert math.isnan(metrics.cohen_kappa(perfect))
    assert metrics.cohen_kappa(half) == 0
    assert metrics.balanced_accuracy(half) == 0.5
    assert math.isnan(metrics.macro_auroc(np.zeros(4, np.int64), np.full((4, 2), 0.5)))


def test_perfect_and_always_wrong_predictions_reach_the_ends_of_the_scales():
    right = np.diag([1, 10, 1000])
    for score in (
        metrics.accuracy,
        metrics.balanced_accuracy,
        metrics.mcc,
        metrics.macro_f1,
        metrics.cohen_kappa,
    ):
        assert score(right) == 1
    swapped = np.array([[0, 5], [5, 0]])
    assert metrics.mcc(swapped) == metrics.cohen_kappa(swapped) == -1
    assert metrics.macro_f1(swapped) == metrics.balanced_accuracy(swapped) == 0


@pytest.mark.filterwarnings("error")
def test_no_image_gives_nan_and_zero_mcc():
    empty = np.zeros((3, 3), np.int64)
    assert metrics.mcc(empty) == 0
    for score in (
        metrics.accuracy,
        metrics.balanced_accuracy,
        metrics.macro_f1,
        metrics.cohen_kappa,
    ):
        assert math.isnan(score(empty))


def test_counts_of_ten_million_images_do_not_overflow():
    assert metrics.mcc(BY_HAND * 10**7) == pytest.approx(metrics.mcc(BY_HAND))
    assert metrics.cohen_kappa(BY_HAND * 10**7) == pytest.approx(metrics.cohen_kappa(BY_HAND))


@settings(deadline=None)
@given(
    pairs=hnp.arrays(
        np.int64, st.tuples(st.integers(0, 40), st.just(2)), elements=st.integers(0, 4)
    ),
    parts=st.integers(1, 5),
)
def test_pooled_counts_of_parts_equal_the_whole(pairs, parts):
    whole = metrics.confusion_matrix(pairs[:, 0], pairs[:, 1], 5)
    pooled = sum(
        metrics.confusion_matrix(part[:, 0], part[:, 1], 5) for part in np.array_split(pairs, parts)
    )
    assert np.array_equal(whole, pooled)
    assert whole.sum() == len(pairs)


def test_evaluate_worked_by_hand():
    labels = np.array([0, 0, 1, 1, 2])
    probabilities = np.eye(3)[[0, 1, 1, 1, 0]]
    sites = np.array([0, 0, 1, 1, 1])
    result = metrics.evaluate(labels, probabilities, sites, NAMES, ("a", "b", "c"), GROUPS)
    assert result.num_images == 5
    assert result.accuracy == 3 / 5
    assert result.recall_per_class == {"nv": 0.5, "mel": 1.0, "bcc": 0.0}
    assert result.recall == {"head": 0.5, "medium": 1.0, "tail": 0.0}
    assert result.balanced_accuracy == pytest.approx(0.5)
    # Site a saw only nv (1 of 2 found), b mel (2 of 2) and bcc (0 of 1), c nothing.
    assert result.balanced_accuracy_per_site["a"] == 0.5
    assert result.balanced_accuracy_per_site["b"] == 0.5
    assert math.isnan(result.balanced_accuracy_per_site["c"])
    assert result.worst_site == "a"
    assert result.worst_site_balanced_accuracy == 0.5
    assert result.confusion.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert {name: part.tolist() for name, part in result.confusion_per_site.items()} == {
        "a": [[1, 1, 0], [0, 0, 0], [0, 0, 0]],
        "b": [[0, 0, 0], [0, 2, 0], [1, 0, 0]],
        "c": [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
    }
    # All are certain, and 3 of 5 right.
    assert result.ece == pytest.approx(2 / 5)
    assert result.reliability["num_images"] == [0] * 14 + [5]
    assert (result.reliability["confidence"][14], result.reliability["accuracy"][14]) == (1, 0.6)


def test_the_spread_over_hospitals_is_the_population_sd_of_those_with_images():
    # Balanced accuracies 1, 1/2 and 0; hospital d has no image: mean 1/2, variance (1/4 + 1/4) / 3.
    labels, sites = np.array([0, 0, 0, 1]), np.array([0, 1, 1, 2])
    probabilities = np.eye(2)[[0, 0, 1, 0]]
    result = metrics.evaluate(labels, probabilities, sites, NAMES[:2], ("a", "b", "c", "d"), {})
    assert result.site_sd_balanced_accuracy == pytest.approx(math.sqrt(1 / 6))


def test_one_hospital_has_no_spread():
    result = metrics.evaluate(
        np.array([0, 1]), np.eye(3)[[0, 0]], np.array([1, 1]), NAMES, ("a", "b"), GROUPS
    )
    assert result.site_sd_balanced_accuracy == 0


@settings(deadline=None)
@given(seed=st.integers(0, 1000), num_sites=st.integers(1, 5))
def test_the_counts_of_hospitals_add_up_to_the_whole(seed, num_sites):
    labels, probabilities = random_problem(seed, num_classes=3, num=30)
    sites = np.random.default_rng(seed).integers(0, num_sites, 30)
    names = [f"site {number}" for number in range(num_sites)]
    result = metrics.evaluate(labels, probabilities, sites, NAMES, names, GROUPS)
    assert np.array_equal(sum(result.confusion_per_site.values()), result.confusion)


def test_worst_site_is_the_lowest_not_the_first():
    labels, sites = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    probabilities = np.eye(2)[[0, 1, 1, 1]]
    result = metrics.evaluate(labels, probabilities, sites, NAMES[:2], ("a", "b"), {})
    assert (result.worst_site, result.worst_site_balanced_accuracy) == ("b", 0.5)


def test_equal_probabilities_predict_the_first_class():
    result = metrics.evaluate(
        np.array([1]), np.full((1, 3), 1 / 3), np.array([0]), NAMES, ("all",), GROUPS
    )
    assert result.confusion[1].tolist() == [1, 0, 0]


def test_to_dict_is_json_with_null_for_undefined():
    result = metrics.evaluate(
        np.array([0, 0]), np.eye(3)[[0, 1]], np.array([0, 0]), NAMES, ("a", "b"), GROUPS
    )
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert list(plain) == [
        "num_images",
        "accuracy",
        "balanced_accuracy",
        "mcc",
        "macro_f1",
        "kappa",
        "macro_auroc",
        "ece",
        "recall",
        "recall_per_class",
        "balanced_accuracy_per_site",
        "worst_site",
        "worst_site_balanced_accuracy",
        "site_sd_balanced_accuracy",
        "confusion",
        "confusion_per_site",
        "reliability",
    ]
    assert plain["recall"] == {"head": 0.5, "medium": None, "tail": None}
    assert plain["recall_per_class"] == {"nv": 0.5, "mel": None, "bcc": None}
    assert plain["balanced_accuracy_per_site"] == {"a": 0.5, "b": None}
    assert plain["macro_auroc"] is None
    assert plain["confusion"] == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert plain["confusion_per_site"] == {"a": plain["confusion"], "b": [[0] * 3] * 3}
    assert plain["reliability"]["accuracy"] == [None] * 14 + [0.5]
    assert plain["reliability"]["num_images"] == [0] * 14 + [2]


def test_scalars_name_groups_and_the_worst_site():
    labels, probabilities = random_problem(0, num_classes=3)
    result = metrics.evaluate(
        labels, probabilities, np.zeros(len(labels), np.int64), NAMES, ("a",), GROUPS
    )
    scalars = result.scalars()
    assert scalars["recall_tail"] == result.recall["tail"]
    assert scalars["worst_site_balanced_accuracy"] == scalars["balanced_accuracy"]
    assert scalars["site_sd_balanced_accuracy"] == 0
    assert scalars["ece"] == result.ece
    assert all(isinstance(value, float) for value in scalars.values())


@pytest.mark.parametrize(
    ("labels", "probabilities", "sites", "text"),
    [
        ([], np.zeros((0, 3)), [], "0 images to evaluate"),
        ([0], np.ones((1, 2)), [0], r"shape \(1, 2\); expected .* \(1, 3\)"),
        ([0], np.ones((1, 3)), [0, 0], "2 sites for 1 images"),
        ([0], np.ones((1, 3)), [7], r"in 0\.\.0"),
        ([3], np.ones((1, 3)), [0], r"labels hold class 3 at row 0; allowed are 0\.\.2"),
        (
            [0, 1],
            np.array([[1, 0, 0], [0, np.nan, 1]]),
            [0, 0],
            "1 of 2 images .* row 1; .*learning",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(labels, probabilities, sites, text):
    with pytest.raises(DataError, match=text):
        metrics.evaluate(
            np.array(labels, np.int64), probabilities, np.array(sites, np.int64), NAMES, ("a",), {}
        )


def test_confusion_matrix_refuses_unequal_lengths():
    with pytest.raises(DataError, match="1 predictions for 2 labels"):
        metrics.confusion_matrix(np.array([0, 1]), np.array([0]), 2)
