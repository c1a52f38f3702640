"""Curves over images: shares, what a resample is, which score."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedkd.data.loading import Loader
from fedkd.fourier.priority import gradient_psd, input_gradients
from fedkd.fourier.priority_curve import BANDS, priority_curve, read_profiles
from fedkd.fourier.rings import ring_means


def quiet(*_):
    """Nobody is told."""


def test_priority_is_the_mean_image_and_shares_add_up():
    # Two images of 8 px, four rings: means (3, 1, 0, 4) of a sum of 8.
    profiles = np.array([[6.0, 0, 0, 2], [0, 2, 0, 6]])
    curve = priority_curve(profiles, ("a", "b"), 8, 8, seed=0)
    assert curve.frequencies.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.priority.tolist() == [3 / 8, 1 / 8, 0, 4 / 8]
    # Each image adds twice its profile over the sum, 16: (.75, 0, 0, .25) and (0, .25, 0, .75).
    assert curve.sd.tolist() == pytest.approx([3 / 8, 1 / 8, 0, 1 / 4])
    assert curve.centroid.value == pytest.approx((3 * 0.25 + 0.5 + 4) / 8)
    assert {name: share.value for name, share in curve.bands.items()} == {
        "lowest": 0, "low": 0, "middle": 3 / 8, "high": 5 / 8
    }  # fmt: skip
    assert (curve.num_images, curve.num_groups) == (2, 2)


def test_bands_of_a_flat_spectrum_are_nearly_octaves():
    curve = priority_curve(np.ones((3, 112)), ("a", "b", "c"), 224, 224, seed=0)
    values = [share.value for share in curve.bands.values()]
    assert list(BANDS) == ["lowest", "low", "middle", "high"]
    assert values == pytest.approx([13 / 112, 14 / 112, 28 / 112, 57 / 112])
    assert sum(values) == pytest.approx(1)
    assert curve.centroid.low == pytest.approx(curve.centroid.high)


def test_an_image_without_a_gradient_adds_nothing_and_none_at_all_gives_nan():
    one = priority_curve(np.array([[1.0, 3], [0, 0]]), ("a", "b"), 4, 4, seed=0)
    assert one.priority.tolist() == [0.25, 0.75]
    none = priority_curve(np.zeros((2, 2)), ("a", "b"), 4, 4, seed=0)
    assert np.isnan(none.priority).all()
    assert np.isnan(none.centroid.value)


def test_intervals_cover_the_truth_and_lesions_are_drawn_whole():
    rng = np.random.default_rng(0)
    # Ten lesions of eight equal images each: the spread is that of ten images.
    lesions = rng.dirichlet((5, 5), 10)
    profiles = np.repeat(lesions, 8, axis=0)
    whole = priority_curve(profiles, [str(i // 8) for i in range(80)], 4, 4, seed=0)
    single = priority_curve(profiles, [str(i) for i in range(80)], 4, 4, seed=0)
    width = whole.centroid.high - whole.centroid.low
    # Centroid = 1 - share of the first ring / 2; +-1.96 standard errors of ten.
    assert width == pytest.approx(2 * 1.96 * lesions[:, 0].std() / 2 / 10**0.5, rel=0.15)
    assert width > 2 * (single.centroid.high - single.centroid.low)
    assert whole.num_groups == 10
    assert np.all((whole.low <= whole.priority) & (whole.priority <= whole.high))


@pytest.fixture
def loader(hospitals):
    images = hospitals["val"]
    return Loader(images, np.arange(5), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("score", ["ce", "top"])
def test_profiles_are_of_the_score_that_is_asked_for(loader, teacher, score):
    found = read_profiles(teacher, score, loader, 2, 0, quiet, "")
    pixels, labels = loader.batch(np.arange(5))

    def value(x):
        logits = teacher(x)
        if score == "top":
            return logits.max(1).values
        return -logits.log_softmax(1)[torch.arange(len(labels)), labels]

    expected = ring_means(gradient_psd(input_gradients(value, pixels)))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-7)
    assert found.dtype == np.float64


def test_a_loss_near_zero_still_has_its_gradient(loader):
    # Logits 20 apart: 1 - p is below float32's rounding. One pixel alone counts: flat spectrum.
    def sure(x):
        return F.one_hot(torch.from_numpy(loader.labels), 4) * (20 + x[:, 0, 0, 0])[:, None]

    found = read_profiles(sure, "ce", loader, 5, 0, quiet, "")
    np.testing.assert_allclose(found, 1 / 16**2, rtol=1e-6)


def test_random_projections_repeat_and_progress_is_told(loader, teacher):
    told = []
    first = read_profiles(teacher, "features", loader, 2, 0, lambda *a: told.append(a), "x")
    again = read_profiles(teacher, "features", loader, 2, 0, quiet, "x")
    other = read_profiles(teacher, "features", loader, 2, 1, quiet, "x")
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert told == [("x", 0, 5), ("x", 2, 5), ("x", 4, 5), ("x", 5, 5)]
