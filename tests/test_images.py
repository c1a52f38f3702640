from dataclasses import replace

import numpy as np
import pytest

from fedkd.data.images import LabelledImages
from fedkd.errors import DataError


def make(**changes):
    fields = {
        "images": np.arange(3 * 3 * 2 * 2, dtype=np.uint8).reshape(3, 3, 2, 2),
        "labels": np.array([2, 0, 2]),
        "class_names": ("a", "b", "c", "d"),
        "sites": np.array([1, 0, 1]),
        "site_names": ("north", "south"),
        "ids": ("x", "y", "z"),
    }
    return LabelledImages(**{**fields, **changes})


def test_class_counts_include_absent_classes():
    assert make().class_counts().tolist() == [1, 0, 2, 0]
    assert make().num_classes == 4


def test_subset_keeps_order_and_everything_that_belongs_to_an_image():
    data = make()
    part = data.subset([2, 1])
    assert part.ids == ("z", "y")
    assert part.labels.tolist() == [2, 0]
    assert part.sites.tolist() == [1, 0]
    assert np.array_equal(part.images, data.images[[2, 1]])
    assert (part.class_names, part.site_names) == (data.class_names, data.site_names)


def test_subset_of_a_subset_shares_the_pixels():
    data = make()
    part = data.subset([2, 0]).subset([1])
    assert part.images.pixels is data.images
    assert np.array_equal(part.images, data.images[[0]])


@pytest.mark.parametrize(
    "indices",
    [np.array([True, False, True]), [True, False, True], (0, 2), range(0, 3, 2), [-3, -1]],
)
def test_subset_reads_masks_and_negative_numbers_as_numpy_does(indices):
    assert make().subset(indices).ids == ("x", "z")
    assert make().subset(indices).labels.tolist() == [2, 2]


def test_empty_subset_keeps_classes_and_sites():
    part = make().subset([])
    assert len(part) == 0
    assert part.class_counts().tolist() == [0, 0, 0, 0]


def test_sites_and_ids_have_defaults():
    data = make(sites=np.zeros(0, np.int64), site_names=("all",), ids=())
    assert data.sites.tolist() == [0, 0, 0]
    assert data.ids == ("0", "1", "2")


def test_labels_and_sites_become_int64_and_names_become_tuples():
    data = make(labels=np.array([2, 0, 2], np.uint8), class_names=["a", "b", "c", "d"])
    assert data.labels.dtype == np.int64
    assert data.class_names == ("a", "b", "c", "d")


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_pixels_keep_their_dtype(dtype):
    data = make(images=np.zeros((3, 1, 2, 2), dtype))
    assert data.images.dtype == dtype
    assert data.subset([1]).images.dtype == dtype


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"images": np.zeros((3, 2, 2), np.uint8)}, r"images have shape \(3, 2, 2\)"),
        ({"images": np.zeros((3, 3, 2, 2), np.int32)}, "dtype int32; allowed are uint8"),
        ({"labels": np.array([0.0, 1.0, 2.0])}, "labels have dtype float64; they must be integers"),
        ({"labels": np.array([0, 1])}, "2 labels for 3 images"),
        ({"sites": np.array([0, 1])}, "2 sites for 3 images"),
        ({"ids": ("x",)}, "1 ids for 3 images"),
        (
            {"labels": np.array([0, 4, 1])},
            r"labels are outside 0..3, the first is 4 at row 1 \(ima",
        ),
        ({"labels": np.array([0, 1, -1])}, "the first is -1 at row 2"),
        ({"sites": np.array([0, 1, 2])}, "1 sites are outside 0..1, the first is 2"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, text):
    with pytest.raises(DataError, match=text):
        make(**changes)


def test_images_of_no_known_group_show_themselves():
    images = LabelledImages(np.zeros((4, 3, 2, 2), np.uint8), np.zeros(4, np.int64), ("a",))
    assert len(set(images.shown)) == 4
    first, second, third, fourth = replace(images, groups=("x", "", "x", "1")).shown
    assert first == third
    assert len({first, second, fourth}) == 3
