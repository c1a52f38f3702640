import logging

import numpy as np
import pytest

from fedkd.data import folds
from fedkd.data.folds import keep_classes, pool, refold
from fedkd.data.images import LabelledImages, Splits
from fedkd.errors import DataError

NAMES = ("a", "b", "c")


def part(split, num, first, groups=True):
    rows = np.arange(num)
    return LabelledImages(
        images=np.broadcast_to((first + rows)[:, None, None, None], (num, 3, 8, 8)).astype(
            np.uint8
        ),
        labels=rows // 2 % 3,
        class_names=NAMES,
        sites=rows // 6 % 2,
        site_names=("north", "south"),
        ids=tuple(f"{split}{row}" for row in rows),
        groups=tuple(f"{split}-lesion-{row // 2}" for row in rows) if groups else (),
    )


def some_splits(groups=True):
    sizes = (("train", 120, 0), ("val", 24, 120), ("test", 36, 144))
    return Splits(*(part(*size, groups) for size in sizes))


def values(images):
    """The number that is every image's only pixel value."""
    return np.asarray(images.images)[:, 0, 0, 0].tolist()


def test_each_image_is_test_once_and_nothing_is_lost():
    found = []
    for fold in range(3):
        splits = refold(some_splits(), 3, fold, seed=0)
        parts = [values(images) for images in (splits.train, splits.val, splits.test)]
        assert sorted(sum(parts, [])) == list(range(180))
        found += parts[2]
    assert sorted(found) == list(range(180))


def test_no_lesion_is_in_two_splits_and_classes_are_alike():
    for fold in range(3):
        splits = refold(some_splits(), 3, fold, seed=0)
        groups = [set(images.groups) for images in (splits.train, splits.val, splits.test)]
        assert sum(map(len, groups)) == len(set.union(*groups)) == 90
        assert splits.test.class_counts().tolist() == [20, 20, 20]
        assert (splits.val.class_counts() > 0).all()


def test_labels_sites_and_ids_stay_with_their_images():
    whole = pool(some_splits())
    fold = refold(some_splits(), 3, 1, seed=0)
    for images in (fold.train, fold.val, fold.test):
        rows = values(images)
        assert images.labels.tolist() == whole.labels[rows].tolist()
        assert images.sites.tolist() == whole.sites[rows].tolist()
        assert images.ids == tuple(whole.ids[row] for row in rows)


def test_images_without_groups_are_divided_one_by_one():
    splits = refold(some_splits(groups=False), 3, 0, seed=0)
    assert len(splits.test) == 60


def test_the_seed_decides_and_the_log_says_that_the_own_split_is_not_used(caplog):
    caplog.set_level(logging.INFO, logger=folds.__name__)
    first, again, other = (refold(some_splits(), 3, 0, seed) for seed in (0, 0, 1))
    assert first.test.ids == again.test.ids
    assert first.test.ids != other.test.ids
    assert "fold 1 of 3: the data set's own split is not used; all 180 images" in caplog.text


def test_ids_that_two_splits_share_get_their_splits_name():
    same = part("x", 12, 0)
    assert pool(Splits(same, same, same)).ids[11:13] == ("train/x11", "val/x0")


def test_more_folds_than_lesions_of_a_class_are_refused():
    splits = some_splits()
    with pytest.raises(DataError, match="class 'a' has images of only 30 lesions or patients"):
        refold(splits, 31, 0, seed=0)


def test_kept_classes_are_numbered_anew_in_their_order():
    splits = keep_classes(some_splits(), ("c", "a"))
    assert splits.train.class_names == ("a", "c")
    assert splits.train.class_counts().tolist() == [40, 40]
    assert set(np.asarray(values(splits.train)) // 2 % 3) == {0, 2}
