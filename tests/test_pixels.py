import numpy as np
import pytest

from fedkd.data.pixels import Joined, Selection, read_batches

ARRAY = np.arange(5 * 3 * 2 * 2, dtype=np.uint8).reshape(5, 3, 2, 2)
ROWS = np.array([4, 0, 3, 3])


@pytest.mark.parametrize(
    "key",
    [2, -1, slice(1, 3), slice(None), [3, 0], np.array([], int), np.array([1, 0, 0, 1], bool)],
)
def test_a_selection_is_indexed_like_the_array_it_stands_for(key):
    assert np.array_equal(Selection(ARRAY, ROWS)[key], ARRAY[ROWS][key])


def test_a_selection_has_the_form_of_the_array_it_stands_for():
    chosen, array = Selection(ARRAY, ROWS), ARRAY[ROWS]
    assert (chosen.shape, chosen.dtype, chosen.ndim) == (array.shape, array.dtype, array.ndim)
    assert len(chosen) == len(array)
    assert np.array_equal(np.asarray(chosen), array)
    assert np.array_equal(np.asarray(chosen, np.float32), array.astype(np.float32))


@pytest.mark.parametrize("key", [4, -5, [0, 4]])
def test_rows_beyond_the_selection_are_refused(key):
    with pytest.raises(IndexError):
        Selection(ARRAY, ROWS)[key]


def test_a_selection_follows_its_array_instead_of_copying_it():
    array = ARRAY.copy()
    chosen = Selection(Selection(array, ROWS), np.array([0, 1]))
    assert chosen.pixels is array
    array[4] = 99
    assert (chosen[0] == 99).all()


@pytest.mark.parametrize("pixels", [ARRAY, Selection(ARRAY, np.arange(5))])
def test_batches_are_read_in_the_order_of_the_plan(pixels):
    plan = [np.array([3, 1]), np.array([], int), np.array([0, 0, 4])]
    read = list(read_batches(pixels, plan))
    assert all(np.array_equal(got, ARRAY[rows]) for got, rows in zip(read, plan, strict=True))
    assert not any(np.may_share_memory(got, ARRAY) for got in read)


def test_joined_pixels_are_their_concatenation_whatever_the_rows():
    numbered = np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(3, axis=1)
    parts = [numbered[2:5], Selection(numbered, np.array([1, 0])), numbered[:0]]
    whole = Joined(parts)
    expected = np.concatenate([np.asarray(part) for part in parts])
    assert whole.shape == expected.shape == (5, 3, 1, 1)
    assert np.array_equal(np.asarray(whole), expected)
    plan = [np.array([4, 0, 3]), np.array([], np.int64), np.array([1, 1])]
    for rows, found in zip(plan, whole.batches(plan), strict=True):
        assert np.array_equal(found, expected[rows])
