"""Scores of a classifier on long-tailed data, from pooled counts; AUROC and ECE, from scores.

All but these two are functions of a confusion matrix: int64 (num_classes, num_classes), rows are
true classes, columns predicted ones. Matrices of parts (clients, sites, batches) add up to the
matrix of the whole, so counts travel and ratios never do.

One rule for absent classes: a class without an image has no recall (nan) and enters no mean.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedkd.calibration import expected_calibration_error, reliability
from fedkd.errors import DataError

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]


def confusion_matrix(labels: Integers, predictions: Integers, num_classes: int) -> Integers:
    """Number of images per true and predicted class.

    Args:
        labels: True classes, int64 (num_images,), 0 <= label < num_classes.
        predictions: Predicted classes, as ``labels``.
        num_classes: Number of classes, absent ones included.

    Returns:
        int64 (num_classes, num_classes); rows true, columns predicted.

    Raises:
        DataError: If the lengths differ or a class is out of range.
    """
    if len(labels) != len(predictions):
        raise DataError(f"{len(predictions)} predictions for {len(labels)} labels; need one each")
    for name, values in (("labels", labels), ("predictions", predictions)):
        bad = np.flatnonzero((values < 0) | (values >= num_classes))
        if len(bad):
            raise DataError(
                f"{name} hold class {values[bad[0]]} at row {bad[0]}; allowed are "
                f"0..{num_classes - 1}, check num_classes"
            )
    cells = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def recall_per_class(confusion: Integers) -> npt.NDArray[np.float64]:
    """Share of each class's images that are found, float64 (num_classes,); nan if it has none."""
    total = confusion.sum(axis=1)
    recall = np.full(len(confusion), np.nan)
    np.divide(confusion.diagonal(), total, out=recall, where=total > 0)
    return recall


def group_recall(confusion: Integers, classes: Sequence[int]) -> float:
    """Mean recall of the classes of a group (head, medium or tail) that have images, else nan."""
    recall = recall_per_class(confusion)[np.asarray(classes, np.int64)]
    present = recall[~np.isnan(recall)]
    return float(present.mean()) if len(present) else math.nan


def balanced_accuracy(confusion: Integers) -> float:
    """Mean recall over the classes that have images, in 0..1; nan without any image."""
    return group_recall(confusion, range(len(confusion)))


def accuracy(confusion: Integers) -> float:
    """Share of images classified correctly, in 0..1; nan without any image."""
    total = int(confusion.sum())
    return int(confusion.trace()) / total if total else math.nan


def mcc(confusion: Integers) -> float:
    """Matthews correlation coefficient of several classes, in -1..1.

    0 where it is undefined: only one class in the labels, or only one predicted, or no image.

    Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation
    coefficient", Computational Biology and Chemistry 2004 (R_K); as in scikit-learn.
    """
    counts = confusion.astype(np.float64)
    true, predicted, total = counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    spread = (total**2 - true @ true) * (total**2 - predicted @ predicted)
    if spread == 0:
        return 0.0
    return float((counts.trace() * total - true @ predicted) / math.sqrt(spread))


def macro_f1(confusion: Integers) -> float:
    """Mean F1 over the classes that have images, in 0..1; nan without any image.

    Differs from scikit-learn, which also counts classes that are predicted but have no image, each
    with F1 = 0: there, a class that a hospital never sees would pull the mean down. Here such
    predictions cost what they are, missed images of the true classes. Where every predicted class
    has images, both agree.
    """
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    present = true > 0
    f1 = 2 * confusion.diagonal()[present] / (true + predicted)[present]
    return float(f1.mean()) if len(f1) else math.nan


def cohen_kappa(confusion: Integers) -> float:
    """Cohen's kappa, agreement beyond chance, unweighted, in -1..1.

    nan where it is undefined: all images of one class and all predicted as it, or no image; as in
    scikit-learn.
    """
    counts = confusion.astype(np.float64)
    chance, total = counts.sum(axis=1) @ counts.sum(axis=0), counts.sum()
    if chance == total**2:
        return math.nan
    return float((counts.trace() * total - chance) / (total**2 - chance))


def _auroc(positive: npt.NDArray[np.bool_], scores: Floats) -> float:
    # The rank-sum form of AUROC with mid-ranks for ties. scikit-learn's is the test's oracle; it
    # takes 2 s to import, which every worker process that only counts would pay.
    _, tie, size = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(size) - (size - 1) / 2)[tie]
    num = int(positive.sum())
    return float((rank[positive].sum() - num * (num + 1) / 2) / (num * (len(scores) - num)))


def macro_auroc(labels: Integers, probabilities: Floats) -> float:
    """Mean one-versus-rest area under the ROC curve, in 0..1.

    Args:
        labels: True classes, int64 (num_images,).
        probabilities: A score per class, float (num_images, num_classes). Rows need not sum to 1;
            ties count half.

    Returns:
        Mean over the classes that have both images and non-images; nan if there is none.
    """
    areas = []
    for number in range(probabilities.shape[1]):
        positive = labels == number
        if positive.any() and not positive.all():
            areas.append(_auroc(positive, probabilities[:, number]))
    return float(np.mean(areas)) if areas else math.nan


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All scores of one model on one split; nan where a score is undefined.

    Attributes:
        num_images: Images of the split.
        accuracy: Share of images classified correctly.
        balanced_accuracy: Mean recall over the classes present.
        mcc: Matthews correlation coefficient (R_K).
        macro_f1: Mean F1 over the classes present.
        kappa: Cohen's kappa.
        macro_auroc: Mean one-versus-rest AUROC, over the classes that have both images and others.
        ece: Expected calibration error (15 bins); nan if the scores are no probabilities.
        recall: Mean recall of each group of classes, by its name (head, medium, tail).
        recall_per_class: Recall by class name; nan for a class without images.
        balanced_accuracy_per_site: By site name, over the classes present there; nan for a site
            without images.
        worst_site: Site of the lowest balanced accuracy, the first one of equals.
        worst_site_balanced_accuracy: Its balanced accuracy.
        site_sd_balanced_accuracy: Spread: the population standard deviation of the balanced
            accuracies of the sites that have images; 0 with one such site.
        confusion: Counts, int64 (num_classes, num_classes), rows true, columns predicted.
        confusion_per_site: The same by site name; their sum is ``confusion``.
        reliability: Bins of confidence, see :func:`fedkd.calibration.reliability`.
    """

    num_images: int
    accuracy: float
    balanced_accuracy: float
    mcc: float
    macro_f1: float
    kappa: float
    macro_auroc: float
    ece: float
    recall: dict[str, float]
    recall_per_class: dict[str, float]
    balanced_accuracy_per_site: dict[str, float]
    worst_site: str
    worst_site_balanced_accuracy: float
    site_sd_balanced_accuracy: float
    confusion: Integers
    confusion_per_site: dict[str, Integers]
    reliability: dict[str, list[float]]

    def scalars(self) -> dict[str, float]:
        """The single numbers by name, as a table of rounds has them; ``recall_tail`` and so on."""
        names = ("accuracy", "balanced_accuracy", "mcc", "macro_f1", "kappa", "macro_auroc")
        return {
            **{name: getattr(self, name) for name in names},
            **{f"recall_{group}": value for group, value in self.recall.items()},
            "worst_site_balanced_accuracy": self.worst_site_balanced_accuracy,
            "site_sd_balanced_accuracy": self.site_sd_balanced_accuracy,
            "ece": self.ece,
        }

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, ready for JSON: nan becomes None, a matrix lists."""
        return {name: _plain(value) for name, value in vars(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def evaluate(
    labels: Integers,
    probabilities: Floats,
    sites: Integers,
    class_names: Sequence[str],
    site_names: Sequence[str],
    groups: Mapping[str, Sequence[int]],
) -> Evaluation:
    """Score a model's probabilities on one split.

    The predicted class is the most probable one, the first of equals.

    Args:
        labels: True classes, int64 (num_images,).
        probabilities: A score per class, float (num_images, num_classes).
        sites: Index of each image's hospital, int64 (num_images,).
        class_names: One name per class.
        site_names: One name per hospital.
        groups: Class indices of "head", "medium" and "tail"; a group may be empty (its recall is
            then nan).

    Raises:
        DataError: If there is no image, shapes do not fit, or a score is not finite.
    """
    if len(labels) == 0:
        raise DataError(
            "there are 0 images to evaluate; a split needs at least 1, check its source"
        )
    if probabilities.shape != (len(labels), len(class_names)):
        raise DataError(
            f"probabilities have shape {probabilities.shape}; expected (num_images, num_classes) = "
            f"{(len(labels), len(class_names))}"
        )
    if len(sites) != len(labels) or np.any((sites < 0) | (sites >= len(site_names))):
        raise DataError(
            f"{len(sites)} sites for {len(labels)} images; need one each, in "
            f"0..{len(site_names) - 1} (the indices of site_names)"
        )
    bad = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if len(bad):
        raise DataError(
            f"probabilities of {len(bad)} of {len(labels)} images are not finite, the first at row "
            f"{bad[0]}; the student has diverged, lower its learning rate"
        )
    predictions = probabilities.argmax(axis=1).astype(np.int64)
    confusion = confusion_matrix(labels, predictions, len(class_names))
    confusion_per_site = {}
    for number, name in enumerate(site_names):
        here = sites == number
        part = confusion_matrix(labels[here], predictions[here], len(class_names))
        confusion_per_site[name] = part
    per_site = {name: balanced_accuracy(part) for name, part in confusion_per_site.items()}
    # Every image has a site, so at least one site has a score.
    seen = {name: value for name, value in per_site.items() if not math.isnan(value)}
    worst = min(seen, key=seen.__getitem__)
    bins = reliability(labels, probabilities)
    return Evaluation(
        num_images=len(labels),
        accuracy=accuracy(confusion),
        balanced_accuracy=balanced_accuracy(confusion),
        mcc=mcc(confusion),
        macro_f1=macro_f1(confusion),
        kappa=cohen_kappa(confusion),
        macro_auroc=macro_auroc(labels, probabilities),
        ece=expected_calibration_error(bins),
        recall={group: group_recall(confusion, classes) for group, classes in groups.items()},
        recall_per_class=dict(zip(class_names, recall_per_class(confusion).tolist(), strict=True)),
        balanced_accuracy_per_site=per_site,
        worst_site=worst,
        worst_site_balanced_accuracy=seen[worst],
        site_sd_balanced_accuracy=float(np.std(list(seen.values()))),
        confusion=confusion,
        confusion_per_site=confusion_per_site,
        reliability=bins,
    )
