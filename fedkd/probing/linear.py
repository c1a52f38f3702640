"""What frozen features are worth: a linear probe, its scores and a bootstrap over lesions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from fedkd import metrics
from fedkd.seeding import rng as derived_rng

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.integer]

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""Inverse regularisations that the probe tries; standardised features of some hundred dimensions
have their best value inside (our choice)."""


@dataclass(frozen=True)
class Probe:
    """A fitted linear probe.

    Attributes:
        strength: Chosen inverse regularisation C.
        val: Class probabilities of the validation examples, float (num_val, num_classes).
        test: The same for the test examples, float (num_test, num_classes).
    """

    strength: float
    val: Floats
    test: Floats


@dataclass(frozen=True)
class Scores:
    """What a probe reaches on one split, both as fractions.

    Attributes:
        balanced_accuracy: Mean recall over the classes.
        macro_auroc: Mean over the classes of the area under the ROC curve, one class against rest.
    """

    balanced_accuracy: float
    macro_auroc: float


@dataclass(frozen=True)
class Difference:
    """A paired difference of balanced accuracies, first minus second, as fractions.

    Attributes:
        value: On the examples as they are.
        low: Lower bound of the 95 % interval.
        high: Upper bound.
        num_groups: How many groups were drawn from; of few, the interval is too narrow.
    """

    value: float
    low: float
    high: float
    num_groups: int


def linear_probe(
    train_features: Floats,
    train_labels: Integers,
    val_features: Floats,
    val_labels: Integers,
    test_features: Floats | None = None,
    strengths: Sequence[float] = STRENGTHS,
    *,
    num_classes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Probe:
    """Fit a class-balanced multinomial logistic regression on standardised features.

    The strength with the highest macro-AUROC on val wins, at equality (or where all val examples
    are of one class) the smallest; balanced accuracy would hang on single images where a class has
    ten of them. Labels of the test examples are not asked for.

    Args:
        train_features: Float (num_train, num_features).
        train_labels: Class numbers 0 .. num_classes - 1, at least two of them, int (num_train,).
        val_features: Float (num_val, num_features).
        val_labels: Int (num_val,).
        test_features: Float (num_test, num_features); None means that there are none.
        strengths: Inverse regularisations C to try, > 0.
        num_classes: How many classes there are; those without a training example get probability 0
            everywhere. None means that every class has one.
        progress: Told how many strengths are done, and of how many.

    Raises:
        ValueError: If there is one class only, or, without ``num_classes``, a class between 0 and
            the largest has no training example.
    """
    classes = np.unique(train_labels)
    if num_classes is None and not np.array_equal(classes, np.arange(len(classes))):
        raise ValueError(
            f"the classes in train_labels are {classes.tolist()}; they must be 0, 1, 2 ... "
            "without gaps: number the classes anew"
        )
    width = int(classes.max()) + 1 if num_classes is None else num_classes

    def predict(model: Pipeline, features: Floats) -> Floats:
        probabilities = np.zeros((len(features), width))
        if len(features):
            probabilities[:, classes] = model.predict_proba(features)
        return probabilities

    fitted = []
    for number, strength in enumerate(sorted(strengths), start=1):
        model = make_pipeline(
            StandardScaler(),
            LogisticRegression(C=strength, class_weight="balanced", max_iter=1000),
        ).fit(train_features, train_labels)
        val = predict(model, val_features)
        area = score(val, val_labels).macro_auroc
        fitted.append((0.0 if np.isnan(area) else area, strength, val, model))
        if progress:
            progress(number, len(strengths))
    _, strength, val, model = max(fitted, key=lambda item: item[0])
    test = train_features[:0] if test_features is None else test_features
    return Probe(strength, val, predict(model, test))


def score(probabilities: Floats, labels: Integers) -> Scores:
    """Balanced accuracy and macro-AUROC of predicted probabilities.

    Classes without an example in ``labels`` count in neither.

    Args:
        probabilities: Float (num_examples, num_classes).
        labels: Int (num_examples,), at least two classes; of one, macro-AUROC is nan.
    """
    true, predicted = labels.astype(np.int64), probabilities.argmax(axis=1).astype(np.int64)
    confusion = metrics.confusion_matrix(true, predicted, probabilities.shape[1])
    return Scores(metrics.balanced_accuracy(confusion), metrics.macro_auroc(true, probabilities))


def lesion_bootstrap(
    labels: Integers,
    first: Integers,
    second: Integers,
    groups: npt.ArrayLike,
    seed: int,
    num_resamples: int = 2000,
) -> Difference:
    """Difference of two balanced accuracies with its interval over resampled groups.

    Images of one lesion are not independent, so whole lesions are drawn with replacement, as many
    as there are; percentile interval. A class that a resample misses is left out of its mean.

    Args:
        labels: Int (num_examples,).
        first: Predicted classes, int (num_examples,), or (num_models, num_examples) for the mean
            balanced accuracy of several models, such as training seeds.
        second: The same for what is subtracted.
        groups: Group of each example, such as its lesion, (num_examples,).
        seed: Seed of the resampling.
        num_resamples: Number of resamples, > 0.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, with groups as units.
    """
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    num_classes = int(labels.max()) + 1
    gain = (np.atleast_2d(first) == labels).mean(0) - (np.atleast_2d(second) == labels).mean(0)
    # Per group and class: how many examples, and by how many first is right more often.
    examples, gains = np.zeros((2, len(names), num_classes))
    np.add.at(examples, (members, labels), 1)
    np.add.at(gains, (members, labels), gain)
    rng = derived_rng(seed, "lesion-bootstrap")
    chances = np.full(len(names), 1 / len(names))
    drawn = rng.multinomial(len(names), chances, size=num_resamples).astype(np.float64)
    values = _mean_recall(drawn @ gains, drawn @ examples)
    value = _mean_recall(gains.sum(0, keepdims=True), examples.sum(0, keepdims=True))[0]
    low, high = np.quantile(values, (0.025, 0.975))
    return Difference(float(value), float(low), float(high), len(names))


def _mean_recall(gains: Floats, examples: Floats) -> Floats:
    """Mean over the classes with examples, (resamples,)."""
    recalls = gains / np.maximum(examples, 1)
    return np.asarray(recalls.sum(axis=1) / (examples > 0).sum(axis=1))
