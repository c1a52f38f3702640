"""Bootstrap of test images and seeds together, from the predictions of a comparison's runs.

Seeds alone say how much training varies on these test images; another draw of patients moves all
arms as well. Here lesions or patients (column ``group``; an image without one stands alone) and
seeds are resampled independently of each other, the pigeonhole bootstrap.

Groups are resampled within the class that most of their images have, so that every class keeps its
number of groups (our choice: the test split's mix of classes is a design, not a draw, and the
recall of a rare class must not vanish). A class with a single group therefore does not vary.

Source: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007: the variance of the
groups is kept, that of their interaction with seeds is overstated up to threefold. That of n seeds
comes out too small by (n - 1) / n, as in any bootstrap.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from fedkd import seeding
from fedkd.errors import DataError

Floats = npt.NDArray[np.float64]
Weights = npt.NDArray[np.float32]
Predictions = Callable[[str], pd.DataFrame]
"""Gives the predictions_test.csv of a run: columns id, group, label, prediction, p_<class>."""
TailClasses = Callable[[str], Collection[str]]
"""Gives the names of a run's tail classes."""
RESAMPLED = ("balanced_accuracy", "mcc", "recall_tail")
NUM_RESAMPLES = 1000
# Columns of counts: correct, true and predicted images, each by class.
_CORRECT, _TRUE, _PREDICTED = range(3)


def stored_predictions(folder: Path) -> Predictions:
    """Read predictions_test.csv of the runs in this folder."""
    return lambda run: pd.read_csv(
        folder / run / "predictions_test.csv",
        dtype={"id": str, "group": str, "label": str, "prediction": str},
        keep_default_na=False,
    )


def resampled_scores(
    runs: Mapping[tuple[str, int], str],
    predictions: Predictions,
    tail: TailClasses | None,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[tuple[str, int], dict[str, Floats]]:
    """Scores of all runs of one setting on the same resamples of the test images.

    Args:
        runs: Run by arm and seed.
        predictions: Gives a run's predictions.
        tail: Gives its tail classes; None leaves tail recall out.
        seed: Of the draws.
        num_resamples: How many.

    Returns:
        By arm and seed, by measure: float64 (1 + num_resamples,); the first is that of the images
        as they are.

    Raises:
        DataError: A predictions file lacks a column or has a class without a probability.
    """
    frames = {key: _keyed(run, predictions(run)) for key, run in runs.items()}
    strata = _strata(frames.values())
    weights = _weights(strata, num_resamples, seed)
    found = {}
    for key, frame in frames.items():
        names = [name[2:] for name in frame.columns if name.startswith("p_")]
        counts = _counts(runs[key], frame, strata.index, names)
        rows = None if tail is None else np.isin(names, list(tail(runs[key])))
        found[key] = _scores(weights, counts, rows)
    return found


def two_level(values: Floats, seed: int, level: float) -> tuple[float, float]:
    """Percentile interval of the mean over seeds, images and seeds resampled.

    Args:
        values: Scores or paired differences, float64 (num_seeds, num_resamples), a resample of
            the images being a column.
        seed: Of the draws; they depend on it and on the number of seeds only.
        level: 1 - confidence.
    """
    num_seeds, num_resamples = values.shape
    rng = seeding.rng(seed, "bootstrap-seeds", num_seeds)
    drawn = rng.integers(num_seeds, size=(num_seeds, num_resamples))
    means = np.take_along_axis(values, drawn, axis=0).mean(axis=0)
    low, high = np.quantile(means, [level / 2, 1 - level / 2])
    return float(low), float(high)


def _keyed(run: str, frame: pd.DataFrame) -> pd.DataFrame:
    lacking = {"id", "group", "label", "prediction"} - set(frame.columns)
    if lacking:
        raise DataError(
            f"predictions_test.csv of {run} lacks the columns {', '.join(sorted(lacking))}; it has "
            f"{', '.join(map(str, frame.columns))}: run the cell again"
        )
    groups = frame["group"].fillna("").astype(str)
    own = "image " + frame["id"].astype(str)
    return frame.assign(unit=own.where(groups == "", "group " + groups))


def _strata(frames: Collection[pd.DataFrame]) -> pd.Series:
    """The class of every group of any of the runs, by the group's name, sorted."""
    pairs = pd.concat([frame[["unit", "id", "label"]] for frame in frames])
    counts = pairs.drop_duplicates().value_counts(["unit", "label"]).reset_index()
    counts = counts.sort_values(["unit", "count", "label"], ascending=[True, False, True])
    return counts.drop_duplicates("unit").set_index("unit")["label"]


def _weights(strata: pd.Series, num_resamples: int, seed: int) -> Weights:
    """How often each group is drawn, float32 (1 + num_resamples, num_groups), first once each."""
    rng = seeding.rng(seed, "bootstrap-images")
    weights = np.ones((1 + num_resamples, len(strata)), np.float32)
    for label in sorted(strata.unique()):
        here = np.flatnonzero(strata.to_numpy() == label)
        weights[1:, here] = rng.multinomial(
            len(here), np.full(len(here), 1 / len(here)), size=num_resamples
        )
    return weights


def _counts(
    run: str, frame: pd.DataFrame, units: pd.Index, names: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Images of each group: float32 (num_groups, 3, num_classes); see the constants above."""
    classes = pd.Index(names)
    rows = units.get_indexer(pd.Index(frame["unit"]))
    true, predicted = (
        classes.get_indexer(pd.Index(frame[column].astype(str)))
        for column in ("label", "prediction")
    )
    if min(true.min(), predicted.min()) < 0:
        unknown = sorted({*frame["label"], *frame["prediction"]} - set(names))
        raise DataError(
            f"predictions_test.csv of {run} has the classes {', '.join(map(str, unknown))} but no "
            f"column p_<class> for them; it has {', '.join(names)}: run the cell again"
        )
    shape = (len(units), 3, len(names))
    correct = true == predicted
    cells = np.concatenate(
        [
            np.ravel_multi_index((some, np.full_like(some, kind), classes_of), shape)
            for kind, some, classes_of in (
                (_CORRECT, rows[correct], true[correct]),
                (_TRUE, rows, true),
                (_PREDICTED, rows, predicted),
            )
        ]
    )
    counts = np.bincount(cells, minlength=math.prod(shape)).reshape(shape)
    return counts.astype(np.float32)


def _scores(
    weights: Weights, counts: npt.NDArray[np.float32], tail: npt.NDArray[np.bool_] | None
) -> dict[str, Floats]:
    """As in ``fedkd.metrics``, for all resamples at once; float32 counts are exact to 2^24."""
    num_classes = counts.shape[2]
    total = (weights @ counts.reshape(len(counts), -1)).astype(np.float64)
    correct, true, predicted = total.reshape(len(weights), 3, num_classes).transpose(1, 0, 2)
    recall = np.full_like(correct, np.nan)
    np.divide(correct, true, out=recall, where=true > 0)
    images = true.sum(axis=1)
    top = correct.sum(axis=1) * images - (true * predicted).sum(axis=1)
    bottom = (images**2 - (true**2).sum(axis=1)) * (images**2 - (predicted**2).sum(axis=1))
    found = {"balanced_accuracy": _mean(recall)}
    found["mcc"] = np.divide(top, np.sqrt(bottom), out=np.zeros_like(top), where=bottom > 0)
    if tail is not None:
        found["recall_tail"] = _mean(recall[:, tail])
    return found


def _mean(recall: Floats) -> Floats:
    """Mean of each row's numbers that are not nan; nan if there is none."""
    present = ~np.isnan(recall)
    num = present.sum(axis=1)
    total = np.where(present, recall, 0).sum(axis=1)
    found = np.full(len(recall), np.nan)
    np.divide(total, num, out=found, where=num > 0)
    return found
