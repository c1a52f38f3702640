"""Each client's own part of a held-out split."""

import numpy as np
import pytest

from fedkd.data.images import LabelledImages
from fedkd.held_out import divide_held_out
from fedkd.partition import Partition

CLASSES = ("a", "b", "c")


def split(labels, sites=(), site_names=("all",)):
    pixels = np.zeros((len(labels), 3, 2, 2), np.uint8)
    return LabelledImages(
        pixels, np.asarray(labels), CLASSES, np.asarray(sites, np.int64), site_names
    )


def clients(*parts, names=None):
    rows = tuple(np.asarray(part, np.int64) for part in parts)
    return Partition(rows, names or tuple(f"client-{number}" for number in range(len(parts))))


def test_a_client_that_is_a_site_has_the_images_of_its_site():
    images = split([0, 1, 2, 0], [1, 0, 1, 2], ("north", "south", "elsewhere"))
    parts = divide_held_out(
        images, np.array([0, 1]), clients([0], [1], names=("south", "north")), seed=0
    )
    assert [list(part) for part in parts] == [[0, 2], [1]]


def test_one_client_has_everything():
    (part,) = divide_held_out(split([2, 2, 1]), np.array([0]), clients([0]), seed=0)
    assert list(part) == [0, 1, 2]


def test_each_class_is_divided_as_the_training_images_of_that_class():
    # Class a: 3 to 1 of 8 images -> 6 and 2. Class b: only client 1 has it. Class c: 1 to 2 of 4
    # images -> quotas 4/3 and 8/3, floors 1 and 2, the last image to the larger remainder, 8/3.
    train = np.array([0, 0, 0, 2, 0, 1, 2, 2])
    labels = [0] * 8 + [1] * 3 + [2] * 4
    parts = divide_held_out(split(labels), train, clients([0, 1, 2, 3], [4, 5, 6, 7]), seed=0)
    counts = [np.bincount(np.array(labels)[part], minlength=3).tolist() for part in parts]
    assert counts == [[6, 0, 1], [2, 3, 3]]


def test_no_image_has_two_owners_and_none_is_lost():
    rng = np.random.default_rng(0)
    labels, train = rng.integers(0, 3, 101), rng.integers(0, 3, 60)
    rows = np.array_split(rng.permutation(60), 4)
    parts = divide_held_out(split(labels), train, clients(*rows), seed=5)
    assert sorted(np.concatenate(parts)) == list(range(101))
    assert all((np.diff(part) > 0).all() for part in parts)


def test_a_class_that_nobody_trains_on_belongs_to_nobody():
    parts = divide_held_out(split([0, 1, 1]), np.array([0, 0]), clients([0], [1]), seed=0)
    assert sorted(np.concatenate(parts)) == [0]


@pytest.mark.parametrize("seed", [0, 1])
def test_equal_seeds_give_equal_parts(seed):
    labels, train = np.arange(90) % 3, np.arange(12) % 3
    first, again = (
        divide_held_out(split(labels), train, clients(range(6), range(6, 12)), seed=seed)
        for _ in range(2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    other = divide_held_out(split(labels), train, clients(range(6), range(6, 12)), seed=seed + 1)
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_parts_of_a_site_share_its_images_and_no_others():
    # North: 3 to 1 training images of class a, so of its four a 3 and 1; its b only client 1 has.
    # South has no training image of class a: its a belongs to nobody, its b to its only b client.
    train = np.array([0, 0, 0, 0, 1, 1, 2])
    divided = Partition(
        (np.array([0, 1, 2]), np.array([3, 4]), np.array([5]), np.array([6])),
        ("north-0", "north-1", "south-0", "south-1"),
        ("north", "north", "south", "south"),
    )
    images = split([0, 0, 0, 0, 1, 0, 1, 2, 0], [0, 0, 0, 0, 0, 1, 1, 1, 2],
                   ("north", "south", "elsewhere"))  # fmt: skip
    parts = divide_held_out(images, train, divided, seed=0)
    assert [len(part) for part in parts] == [3, 2, 1, 1]
    assert sorted(np.concatenate(parts[:2])) == [0, 1, 2, 3, 4]
    assert 4 in parts[1]
    assert [list(part) for part in parts[2:]] == [[6], [7]]


def test_parts_of_a_site_that_is_not_in_the_split_have_nothing():
    divided = Partition((np.array([0]), np.array([1])), ("x-0", "x-1"), ("x", "x"))
    parts = divide_held_out(split([0, 1]), np.array([0, 1]), divided, seed=0)
    assert [len(part) for part in parts] == [0, 0]
