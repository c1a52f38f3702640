import numpy as np
import pytest

from fedkd.probing.linear import lesion_bootstrap, linear_probe, score
from fedkd.seeding import rng


def blobs(counts, distance, key=0, num_features=4):
    """Gaussian clouds of spread 1 around ``distance`` times an axis, one axis per class."""
    draws = rng(key, "blobs")
    labels = np.repeat(np.arange(len(counts)), counts)
    features = draws.standard_normal((len(labels), num_features))
    features[np.arange(len(labels)), labels] += distance
    return features, labels


def test_separable_classes_are_told_apart_perfectly():
    train, val = blobs([30] * 3, 12), blobs([9] * 3, 12, 1)
    features, labels = blobs([9] * 3, 12, 2)
    fitted = linear_probe(*train, *val, features)
    assert np.array_equal(fitted.test.argmax(1), labels)
    assert np.array_equal(fitted.val.argmax(1), val[1])
    np.testing.assert_allclose(fitted.test.sum(1), 1)
    reached = score(fitted.test, labels)
    assert (reached.balanced_accuracy, reached.macro_auroc) == (1.0, 1.0)


def test_labels_without_relation_to_features_stay_near_chance():
    train, val = blobs([200] * 3, 0), blobs([90] * 3, 0, 1)
    features, labels = blobs([90] * 3, 0, 2)
    reached = score(linear_probe(*train, *val, features).test, labels)
    assert abs(reached.balanced_accuracy - 1 / 3) < 0.1
    assert abs(reached.macro_auroc - 0.5) < 0.1


def test_rare_class_is_found_as_often_as_the_frequent_one():
    train, val = blobs([2000, 40], 1.5), blobs([500, 50], 1.5, 1)
    features, labels = blobs([500, 500], 1.5, 2)
    predicted = linear_probe(*train, *val, features).test.argmax(1)
    recalls = [(predicted[labels == one] == one).mean() for one in (0, 1)]
    assert min(recalls) > 0.7  # unweighted, the rare class's recall is about a third


def test_scale_and_offset_of_a_feature_do_not_matter():
    train, val, (features, _) = blobs([40] * 3, 2), blobs([20] * 3, 2, 1), blobs([20] * 3, 2, 2)
    scale, offset = np.array([1e-3, 1, 10, 1e3]), np.array([5, 0, -3, 100])
    plain = linear_probe(*train, *val, features)
    moved = linear_probe(
        train[0] * scale + offset,
        train[1],
        val[0] * scale + offset,
        val[1],
        features * scale + offset,
    )
    np.testing.assert_allclose(plain.test, moved.test, atol=1e-4)


def test_strength_is_the_one_best_on_val():
    train, (features, labels) = blobs([15] * 3, 1.5, num_features=40), blobs([90] * 3, 1.5, 1, 40)
    strengths = (1e-4, 1e-2, 10.0)
    single = [linear_probe(*train, features, labels, features, [one]) for one in strengths]
    reached = [score(one.val, labels).macro_auroc for one in single]
    chosen = linear_probe(*train, features, labels, features, strengths)
    assert len(set(reached)) > 1
    assert chosen.strength == strengths[int(np.argmax(reached))]


def test_a_gap_in_the_class_numbers_is_refused():
    features, labels = blobs([5, 5], 3)
    with pytest.raises(ValueError, match=r"classes in train_labels are \[0, 2\].*number"):
        linear_probe(features, labels * 2, features, labels * 2, features)


def test_scores_of_four_examples_are_written_out_by_hand():
    # Class 0: right, right, wrong; class 1: right. Recalls 2/3 and 1. Of class 1's three pairs with
    # class 0, its 0.7 beats 0.1 and 0.4 and loses to 0.8: area 2/3; class 0 is its mirror.
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    reached = score(probabilities, np.array([0, 0, 0, 1]))
    assert reached.balanced_accuracy == pytest.approx(5 / 6)
    assert reached.macro_auroc == pytest.approx(2 / 3)


def test_class_without_examples_counts_in_no_score():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1]])
    reached = score(probabilities, np.array([0, 1]))
    assert (reached.balanced_accuracy, reached.macro_auroc) == (1.0, 1.0)


LABELS = np.array([0] * 30 + [1] * 10)
LESIONS = np.arange(40) // 2
TRUTH = LABELS
ZEROS = np.zeros(40, int)


def test_difference_is_that_of_the_balanced_accuracies():
    # Always class 0: recalls 1 and 0. The truth: 1 and 1.
    difference = lesion_bootstrap(LABELS, TRUTH, ZEROS, LESIONS, seed=0)
    assert difference.value == pytest.approx(0.5)
    assert difference.low <= 0.5 <= difference.high
    assert lesion_bootstrap(LABELS, ZEROS, TRUTH, LESIONS, seed=0).value == pytest.approx(-0.5)


def test_equal_predictions_differ_by_exactly_nothing():
    difference = lesion_bootstrap(LABELS, ZEROS, ZEROS, LESIONS, seed=0)
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)


def test_several_models_count_by_their_mean():
    difference = lesion_bootstrap(LABELS, np.stack([TRUTH, ZEROS]), ZEROS, LESIONS, seed=0)
    assert difference.value == pytest.approx(0.25)


def noisy(key, chance=0.3):
    draws = rng(key, "noisy")
    return np.where(draws.random(len(LABELS)) < chance, 1 - LABELS, LABELS)


def test_whole_groups_are_drawn_so_copies_within_a_group_add_nothing():
    first, second = noisy(1), noisy(2)
    once = lesion_bootstrap(LABELS, first, second, LESIONS, seed=0)
    copied = [np.repeat(values, 5) for values in (LABELS, first, second, LESIONS)]
    again = lesion_bootstrap(*copied, seed=0)
    assert (again.value, again.low, again.high) == pytest.approx((once.value, once.low, once.high))
    apart = lesion_bootstrap(*copied[:3], np.arange(200), seed=0)
    assert apart.high - apart.low < 0.8 * (once.high - once.low)


def test_interval_follows_the_seed_and_covers_the_normal_approximation():
    first, second = noisy(1), noisy(2)
    groups = np.arange(40)
    one = lesion_bootstrap(LABELS, first, second, groups, seed=0, num_resamples=4000)
    assert one == lesion_bootstrap(LABELS, first, second, groups, seed=0, num_resamples=4000)
    assert one != lesion_bootstrap(LABELS, first, second, groups, seed=1, num_resamples=4000)
    gain = (first == LABELS).astype(float) - (second == LABELS)
    of_class = [gain[:30], gain[30:]]
    error = 0.5 * np.sqrt(sum(gains.var() / len(gains) for gains in of_class))
    assert (one.high - one.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.15)


def test_a_class_without_training_examples_is_never_predicted():
    (features, labels), val = blobs([30, 0, 30], 12), blobs([9] * 3, 12, 1)
    fitted = linear_probe(features, labels, *val, val[0], num_classes=4)
    assert fitted.test.shape == (27, 4)
    assert not fitted.test[:, [1, 3]].any()
    np.testing.assert_allclose(fitted.test.sum(1), 1)
    assert fitted.test[val[1] != 1].argmax(1).tolist() == [0] * 9 + [2] * 9


def test_without_test_examples_the_probe_is_the_same_on_val():
    train, val = blobs([30] * 3, 1), blobs([9] * 3, 1, 1)
    steps = []
    fitted = linear_probe(*train, *val, progress=lambda *step: steps.append(step))
    np.testing.assert_array_equal(fitted.val, linear_probe(*train, *val, val[0]).val)
    assert fitted.test.shape == (0, 3)
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_val_examples_of_one_class_choose_the_smallest_strength():
    train, (features, labels) = blobs([30] * 3, 1), blobs([9], 1, 1)
    assert linear_probe(*train, features, labels, strengths=[1.0, 0.1]).strength == 0.1
