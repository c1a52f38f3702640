"""Cross-validation: all labelled images pooled and divided anew, whole lesions or patients."""

import logging
from dataclasses import replace

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from fedkd import seeding
from fedkd.data.images import SPLITS, LabelledImages, Splits
from fedkd.data.pixels import Joined
from fedkd.data.splitting import carve
from fedkd.errors import DataError

logger = logging.getLogger(__name__)

FRACTION_VAL = 0.15
"""Share of the images outside the test fold that becomes val (our choice)."""


def refold(splits: Splits, num_folds: int, fold: int, seed: int) -> Splits:
    """Train, val and test of one of several folds; the log says that the own split is not used.

    Each image is test in exactly one fold. Folds have about the same classes and no lesion or
    patient in common; an image of no known group is a group of its own. Val is carved out of the
    rest by site and class (:func:`fedkd.data.splitting.carve`).

    Args:
        splits: The data set's own.
        num_folds: K, at least 2.
        fold: Which is test, 0 .. K - 1.
        seed: Another number divides otherwise.

    Raises:
        DataError: Fewer groups of a class than folds, or no image for val.
    """
    images = pool(splits)
    shown, groups = np.unique(images.shown, return_inverse=True)
    for number, name in enumerate(images.class_names):
        num = len(np.unique(groups[images.labels == number]))
        if 0 < num < num_folds:
            raise DataError(
                f"{num_folds} folds are asked for, but class {name!r} has images of only {num} "
                "lesions or patients; use fewer folds"
            )
    shuffle = seeding.torch_seed(seed, "folds") % 2**32
    divider = StratifiedGroupKFold(num_folds, shuffle=True, random_state=shuffle)
    rest, test = list(divider.split(np.zeros(len(images)), images.labels, groups))[fold]
    table = pd.DataFrame({
        "id": [images.ids[row] for row in rest],
        "label": images.labels[rest].astype(str),
        "site": images.sites[rest].astype(str),
        "group": [images.groups[row] for row in rest],
    })  # fmt: skip
    streams = {site: seeding.rng(seed, f"fold val {site}", fold) for site in set(table["site"])}
    held_out = carve(table, FRACTION_VAL, streams)
    if not len(held_out):
        raise DataError(
            f"fold {fold} leaves {len(rest)} images for train and val, too few for one of val; "
            "use a larger data set"
        )
    val, train = rest[held_out], np.delete(rest, held_out)
    logger.info(
        "fold %d of %d: the data set's own split is not used; all %d images (%d lesions, patients "
        "or single images) are divided anew: train %d, val %d, test %d",
        fold + 1,
        num_folds,
        len(images),
        len(shown),
        *(len(rows) for rows in (train, val, test)),
    )
    return Splits(images.subset(train), images.subset(val), images.subset(test), splits.bounds)


def pool(splits: Splits) -> LabelledImages:
    """All images of a data set, of which nothing is copied.

    Where two splits use the same id, all ids get their split's name in front.
    """
    parts = [getattr(splits, name) for name in SPLITS]
    ids = [name for part in parts for name in part.ids]
    if len(set(ids)) < len(ids):
        ids = [f"{split}/{name}" for split, part in zip(SPLITS, parts, strict=True)
               for name in part.ids]  # fmt: skip
    return LabelledImages(
        images=Joined([part.images for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        class_names=splits.train.class_names,
        sites=np.concatenate([part.sites for part in parts]),
        site_names=splits.train.site_names,
        ids=tuple(ids),
        groups=tuple(group for part in parts for group in part.groups),
    )


def keep_classes(splits: Splits, names: tuple[str, ...]) -> Splits:
    """The images of some classes, which keep their order; the data set has no others then.

    Published bounds of head and tail are dropped, as they are about the whole data set.
    """
    kept = [n for n, name in enumerate(splits.train.class_names) if name in names]

    def of(images: LabelledImages) -> LabelledImages:
        some = images.subset(np.flatnonzero(np.isin(images.labels, kept)))
        return replace(
            some,
            labels=np.searchsorted(kept, some.labels),
            class_names=tuple(images.class_names[number] for number in kept),
        )

    return Splits(of(splits.train), of(splits.val), of(splits.test))
