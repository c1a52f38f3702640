"""Is a teacher worth distilling from for these images: its features against its controls'."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedkd.data.images import LabelledImages, Splits
from fedkd.data.loading import Loader
from fedkd.data.longtail import class_groups
from fedkd.errors import DataError
from fedkd.metrics import Evaluation, evaluate
from fedkd.probing.controls import Features, Reader, raw_pixels, untrained
from fedkd.probing.linear import Difference, Floats, lesion_bootstrap, linear_probe
from fedkd.probing.neighbours import knn_probabilities
from fedkd.teachers.checkpoints import try_out
from fedkd.teachers.config import OneTeacherConfig
from fedkd.teachers.frozen import Teacher

TEACHER, RAW, UNTRAINED = "teacher", "raw 16x16 pixels", "untrained network"
"""Kinds of features: the teacher's and its controls'."""
Method = Literal["knn", "linear"]
METHODS: tuple[Method, ...] = ("knn", "linear")
MIN_GROUPS = 20
"""Lesions, patients or single images below which no verdict is given (our choice): two of two that
the teacher alone gets right have an interval from +100 to +100 points."""

Split = Literal["val", "test"]
FeaturesOf = Mapping[str, Mapping[str, Features]]
"""By kind of features and split, float32 (num_images, num_features)."""


@dataclass(frozen=True, eq=False)
class Row:
    """What one kind of features reaches by one method on one split.

    Attributes:
        features: ``TEACHER``, ``RAW`` or ``UNTRAINED``.
        method: ``knn`` or ``linear``.
        split: ``val`` or ``test``.
        strength: Of the linear probe, chosen on val; None for knn.
        scores: All scores.
        predictions: Predicted classes, int64 (num_images,).
        minus: Balanced accuracy of the teacher minus that of this control, with its interval; None
            in the rows of the teacher.
    """

    features: str
    method: Method
    split: Split
    strength: float | None
    scores: Evaluation
    predictions: npt.NDArray[np.int64]
    minus: Difference | None = None


def read_features(
    config: OneTeacherConfig,
    teacher: Teacher,
    splits: Splits,
    reader: Reader,
    seed: int,
    with_test: bool,
) -> dict[str, dict[str, Features]]:
    """Features of the teacher and its controls, of train, val and, if asked for, test.

    Args:
        config: What the teacher was opened from.
        teacher: It, on the reader's device.
        splits: The images.
        reader: How they are read.
        seed: Of the untrained network, whose BatchNorm statistics are then measured on training
            images (our choice: whatever a random network can give on these images).
        with_test: Read the test split, too.

    Raises:
        DataError: As :func:`check` says.
        TeacherError: The teacher cannot take images of this size.
    """
    names = ("train", "val", "test") if with_test else ("train", "val")
    check(splits, names[1:])
    one = np.arange(1)
    pixels = Loader(splits.train, one, reader.device, torch.float32).pixels(one)
    try_out(teacher, pixels, teacher.name)
    random = untrained(config, teacher, seed).to(memory_format=torch.channels_last)
    reader.measure_batchnorm(random, splits.train, seed)
    images: dict[str, LabelledImages] = {name: getattr(splits, name) for name in names}
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        TEACHER: teacher.features,
        RAW: raw_pixels,
        UNTRAINED: random,
    }
    return {
        kind: {
            name: reader.features(f"features of {name}: {kind}", compute, some)
            for name, some in images.items()
        }
        for kind, compute in kinds.items()
    }


def check(splits: Splits, scored: Sequence[str]) -> None:
    """Refuse images that no probe can be made of, or scored on (DataError).

    Args:
        splits: The images.
        scored: Names of the splits that features are scored on.
    """
    train = splits.train
    for name in ("train", *scored):
        if not len(getattr(splits, name)):
            raise DataError(f"the {name} split is empty, which a probe needs: choose another one")
    if len(np.unique(train.labels)) < 2:
        name = train.class_names[train.labels[0]]
        raise DataError(
            f"all {len(train)} training images are of class {name!r}; a probe needs images of two "
            "classes at least: choose another data set or split"
        )


def judge(
    splits: Splits,
    features: FeaturesOf,
    reader: Reader,
    seed: int,
    methods: Sequence[Method] = METHODS,
) -> list[Row]:
    """Rows of all features, methods and splits that have features, with their differences.

    kNN takes cosines of features minus the mean training feature (our choice: raw pixels, and
    features that are never negative, else all point the same way), with the defaults of
    :func:`knn_probabilities`; nothing is chosen on val for it. The linear probe chooses its
    strength on val. A class without a training image is never predicted.
    """
    rows: dict[tuple[str, Method, Split], Row] = {}
    for kind, own in features.items():
        for method in methods:
            probabilities, strength = (_knn if method == "knn" else _linear)(
                splits, own, reader, f"{method}: {kind}"
            )
            for split, values in probabilities.items():
                rows[kind, method, split] = _row(splits, kind, method, split, strength, values)
    compared = []
    for (kind, method, split), row in rows.items():
        minus = None
        if kind != TEACHER:
            images: LabelledImages = getattr(splits, split)
            reader.tell(f"bootstrap: {method}, {kind}", 0, 1)
            minus = lesion_bootstrap(
                images.labels,
                rows[TEACHER, method, split].predictions,
                row.predictions,
                images.shown,
                seed,
            )
        compared.append(Row(**{**vars(row), "minus": minus}))
    return sorted(compared, key=lambda row: (row.split != "val", METHODS.index(row.method)))


def verdict(rows: Sequence[Row]) -> str:
    """In words, by the linear probe on the last split: is the teacher better, and surely so?

    Below ``MIN_GROUPS`` lesions, patients or images the answer is that nothing is shown.
    """
    last: list[Row] = [
        row for row in rows if row.method == "linear" and row.split == rows[-1].split
    ]
    texts, sure, num_groups = [], [], 0
    for row in last:
        if row.minus is None:
            continue
        value, low, high = (100 * x for x in (row.minus.value, row.minus.low, row.minus.high))
        num_groups = row.minus.num_groups
        word = "better" if value > 0 else "worse" if value < 0 else "neither better nor worse"
        by = f"by {abs(value):.1f} points of balanced accuracy " if value else ""
        includes = low <= 0 <= high
        sure.append(0 if includes else 1 if low > 0 else -1)
        texts.append(
            f"{word} than {row.features} {by}(95 % interval {low:+.1f} to {high:+.1f}, which "
            f"{'includes 0: it may be chance' if includes else 'does not include 0'})"
        )
    if num_groups < MIN_GROUPS:
        answer = (
            f"not shown to be worth distilling from: {num_groups} lesions, patients or images are "
            "too few for such intervals"
        )
    elif all(one == 1 for one in sure):
        answer = "worth distilling from, by this probe"
    elif -1 in sure:
        answer = "not worth distilling from, by this probe"
    else:
        answer = "not shown to be worth distilling from: these images cannot tell"
    num = last[0].scores.num_images
    return (
        f"On {last[0].split} ({num} images, linear probe) the teacher is "
        f"{'; it is '.join(texts)}. So it is {answer}."
    )


def table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as plain numbers, without the scores by class and hospital; nan is None."""
    keys = ("balanced_accuracy", "mcc", "macro_auroc", "recall_head", "recall_medium",
            "recall_tail")  # fmt: skip
    plain = []
    for row in rows:
        scalars = row.scores.scalars()
        minus = row.minus
        plain.append(
            {
                "features": row.features,
                "method": row.method,
                "split": row.split,
                **{key: None if np.isnan(scalars[key]) else scalars[key] for key in keys},
                "strength": row.strength,
                "teacher_minus_this": minus and minus.value,
                "low": minus and minus.low,
                "high": minus and minus.high,
            }
        )
    return plain


def _knn(
    splits: Splits, own: Mapping[str, Features], reader: Reader, what: str
) -> tuple[dict[Split, Floats], None]:
    mean = own["train"].mean(axis=0)
    bank, labels = torch.from_numpy(own["train"] - mean), torch.from_numpy(splits.train.labels)
    found: dict[Split, Floats] = {}
    for split in _scored(own):
        reader.tell(what, len(found), len(own) - 1)
        asked = torch.from_numpy(own[split] - mean)
        found[split] = knn_probabilities(bank, labels, asked, splits.train.num_classes).numpy()
    return found, None


def _linear(
    splits: Splits, own: Mapping[str, Features], reader: Reader, what: str
) -> tuple[dict[Split, Floats], float]:
    fitted = linear_probe(
        own["train"],
        splits.train.labels,
        own["val"],
        splits.val.labels,
        own.get("test"),
        num_classes=splits.train.num_classes,
        progress=lambda done, total: reader.tell(what, done, total),
    )
    values = {"val": fitted.val, "test": fitted.test}
    return {split: values[split] for split in _scored(own)}, fitted.strength


def _scored(own: Mapping[str, Features]) -> tuple[Split, ...]:
    return ("val", "test") if "test" in own else ("val",)


def _row(
    splits: Splits,
    kind: str,
    method: Method,
    split: Split,
    strength: float | None,
    probabilities: Floats,
) -> Row:
    images: LabelledImages = getattr(splits, split)
    scores = evaluate(
        images.labels,
        probabilities,
        images.sites,
        images.class_names,
        images.site_names,
        {name: classes.tolist() for name, classes in class_groups(splits).items()},
    )
    predictions = probabilities.argmax(axis=1).astype(np.int64)
    return Row(kind, method, split, strength, scores, predictions)
