import numpy as np
import pytest
import torch

from fedkd.data.images import LabelledImages
from fedkd.data.loading import Loader, in_order

CPU = torch.device("cpu")


def store(dtype=np.uint8):
    rng = np.random.default_rng(0)
    return LabelledImages(
        images=rng.integers(0, 256, (6, 3, 4, 5)).astype(dtype),
        labels=np.array([2, 0, 1, 2, 2, 0]),
        class_names=("a", "b", "c", "d"),
    )


def loader(data, rows, dtype=torch.float32):
    return Loader(data, np.array(rows), CPU, dtype)


def test_positions_are_those_of_the_clients_own_images():
    data = store()
    own = loader(data, [5, 3, 0])
    pixels, labels = own.batch(np.array([2, 0, 0]))
    assert len(own) == 3
    assert labels.tolist() == [2, 0, 0]
    assert labels.dtype == torch.int64
    assert torch.equal(pixels, torch.from_numpy(data.images[[0, 5, 5]]).float() / 255)
    assert torch.equal(own.pixels(np.array([2, 0, 0])), pixels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uint8_becomes_zero_to_one_rounded_once(dtype):
    data = store()
    data.images[0, 0, 0, :3] = [0, 1, 255]
    pixels = loader(data, [0], dtype).pixels(np.array([0]))
    assert pixels.dtype == dtype
    assert pixels[0, 0, 0, :3].tolist() == torch.tensor([0, 1 / 255, 1], dtype=dtype).tolist()


@pytest.mark.parametrize("stored", [np.float32, np.float64])
def test_floats_stay_as_they_are(stored):
    data = store(stored)
    data.images[1] -= 300
    pixels = loader(data, [1], torch.float64).pixels(np.array([0]))
    assert torch.equal(pixels, torch.from_numpy(data.images[[1]]).double())


def test_absent_classes_count_zero():
    assert loader(store(), [0, 1, 3]).class_counts().tolist() == [1, 0, 2, 0]


def test_a_client_costs_no_copy_of_the_images_and_a_batch_does_not_touch_them():
    data = store(np.float32)
    own = loader(data, [0, 1])
    assert own.data.images is data.images
    before = data.images.copy()
    own.pixels(np.array([0, 1])).zero_()
    assert np.array_equal(data.images, before)


def test_batches_are_those_of_batch_one_after_the_other():
    own = loader(store(), [5, 3, 0])
    plan = [np.array([2, 0]), np.array([1])]
    for (pixels, labels), positions in zip(own.batches(plan), plan, strict=True):
        expected = own.batch(positions)
        assert torch.equal(pixels, expected[0])
        assert torch.equal(labels, expected[1])


def test_every_byte_is_divided_as_torch_divides_it():
    data = LabelledImages(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16), [0], ("a",))
    for dtype in (torch.float32, torch.float64):
        pixels = loader(data, [0], dtype).pixels(np.array([0]))
        assert torch.equal(pixels.flatten(), torch.arange(256).to(dtype) / 255)


@pytest.mark.parametrize(
    ("num", "size", "plan"), [(5, 2, [[0, 1], [2, 3], [4]]), (4, 2, [[0, 1], [2, 3]]), (0, 2, [])]
)
def test_in_order_covers_all_positions(num, size, plan):
    assert [rows.tolist() for rows in in_order(num, size)] == plan
