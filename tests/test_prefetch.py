"""Reading ahead: the order, the errors and the thread; on a GPU also the numbers."""

import threading
from contextlib import closing

import numpy as np
import pytest
import torch

from fedkd.data.ahead import read_ahead
from fedkd.data.images import LabelledImages
from fedkd.data.loading import Loader


def ours():
    return [t for t in threading.enumerate() if t.name.startswith("fedkd-ahead")]


class Items:
    """Numbers 0 .. 9; knows what was made, in which threads, and whether it was closed."""

    def __init__(self, fails_at=None):
        self.fails_at, self.made, self.threads, self.closed = fails_at, [], set(), False

    def __call__(self):
        try:
            for number in range(10):
                if number == self.fails_at:
                    raise OSError(f"no item {number}")
                self.made.append(number)
                self.threads.add(threading.current_thread())
                yield number
        finally:
            self.closed = True


@pytest.mark.parametrize("num", [1, 3, 64])
def test_all_items_come_in_their_order_from_one_other_thread(num):
    items = Items()
    assert list(read_ahead(items(), num)) == list(range(10))
    assert len(items.threads) == 1
    assert threading.current_thread() not in items.threads
    assert items.closed
    assert not ours()


def test_no_item_gives_none():
    assert list(read_ahead((number for number in ()), 2)) == []


def test_nothing_is_made_before_it_is_asked_for_and_then_not_more_than_num_ahead():
    items = Items()
    with closing(read_ahead(items(), 3)) as ahead:
        assert items.made == []
        assert not ours()
        assert [next(ahead), next(ahead)] == [0, 1]
    # 0 and 1 are in use; closing waits for what is being made.
    assert items.made == list(range(len(items.made)))
    assert 2 <= len(items.made) <= 5


def test_an_item_is_made_while_the_one_before_is_in_use():
    is_made = threading.Event()

    def items():
        yield 0
        is_made.set()
        yield 1

    with closing(read_ahead(items(), 1)) as ahead:
        assert next(ahead) == 0
        assert is_made.wait(10)


def test_what_the_thread_raises_reaches_the_caller_at_its_place():
    items, got = Items(fails_at=4), []
    with pytest.raises(OSError, match="no item 4"), closing(read_ahead(items(), 2)) as ahead:
        got.extend(iter(ahead.__next__, None))
    assert items.made == [0, 1, 2, 3]
    assert items.closed
    assert not ours()


def test_everything_before_an_error_is_given():
    ahead = read_ahead(Items(fails_at=4)(), 64)
    assert [next(ahead) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(OSError, match="no item 4"):
        next(ahead)


def test_closing_early_leaves_no_thread_and_closes_the_items():
    items = Items()
    ahead = read_ahead(items(), 2)
    assert next(ahead) == 0
    assert ours()
    ahead.close()
    assert not ours()
    assert items.closed
    assert len(items.made) <= 4


def test_an_error_of_the_caller_leaves_no_thread():
    def use():
        with closing(read_ahead(Items()(), 2)) as ahead:
            raise KeyError(next(ahead))

    with pytest.raises(KeyError, match="0"):
        use()
    assert not ours()


def loader(device, prefetch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (11, 3, 8, 8)).astype(np.uint8)
    data = LabelledImages(images, rng.integers(0, 3, 11), ("a", "b", "c"))
    return Loader(data, np.arange(1, 11), torch.device(device), torch.float32, prefetch)


PLAN = [np.array([0, 5]), np.array([9, 1, 2]), np.array([3])]


def test_on_a_cpu_there_is_no_thread_and_the_same_bits():
    own = loader("cpu", prefetch=2)
    with closing(own.batches(PLAN)) as loaded:
        for (pixels, labels), positions in zip(loaded, PLAN, strict=True):
            assert not ours()
            expected = own.batch(positions)
            assert torch.equal(pixels, expected[0])
            assert torch.equal(labels, expected[1])


def test_the_clients_read_as_far_ahead_as_the_recipe_says(opened):
    experiment = opened(engine={"prefetch": 5}, objective={"name": "supervised"})
    assert experiment.loader(0).prefetch == 5
    assert experiment.held_out_loader("val").prefetch == 5
    assert experiment.held_out_loader("val", 1).prefetch == 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use (CUDA)")
@pytest.mark.parametrize("prefetch", [0, 1, 8])
def test_on_a_gpu_batches_are_the_same_whatever_is_read_ahead(prefetch):
    # A CPU's are others in the last bit: a GPU multiplies by 1 / 255.
    own = loader("cuda", prefetch)
    with closing(own.batches(PLAN * 20)) as loaded:
        for (pixels, labels), positions in zip(loaded, PLAN * 20, strict=True):
            pixels.mul_(2)  # in place, as augmentation does: memory in use is given to no other
            expected = own.batch(positions)
            assert torch.equal(pixels, expected[0] * 2)
            assert torch.equal(labels, expected[1])
    assert not ours()
