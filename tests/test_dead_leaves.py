import numpy as np
import pytest

from fedkd.data.dead_leaves import dead_leaves


@pytest.fixture(scope="module")
def images():
    return dead_leaves(128, 64, seed=0)


def radial_spectrum(images):
    """Mean power at each whole radial frequency, from grey images under a Hann window."""
    size = images.shape[-1]
    grey = images.astype(np.float64).mean(axis=1)
    grey -= grey.mean(axis=(1, 2), keepdims=True)
    window = np.hanning(size)[:, None] * np.hanning(size)
    power = (np.abs(np.fft.fft2(grey * window)) ** 2).mean(axis=0)
    frequency = np.fft.fftfreq(size) * size
    ring = np.rint(np.hypot(frequency[:, None], frequency)).astype(int).ravel()
    return np.bincount(ring, power.ravel()) / np.bincount(ring)


def slope(images):
    rings = np.arange(2, 31)
    return np.polyfit(np.log(rings), np.log(radial_spectrum(images)[rings]), 1)[0]


def test_shape_and_dtype_are_as_promised():
    assert dead_leaves(3, 16, seed=0).shape == (3, 3, 16, 16)
    assert dead_leaves(3, 16, seed=0).dtype == np.uint8
    assert dead_leaves(0, 16, seed=0).shape == (0, 3, 16, 16)


def test_same_seed_gives_same_images_and_another_seed_others():
    assert np.array_equal(dead_leaves(4, 16, seed=3), dead_leaves(4, 16, seed=3))
    assert not np.array_equal(dead_leaves(4, 16, seed=3), dead_leaves(4, 16, seed=4))


def test_an_image_does_not_depend_on_how_many_are_asked_for():
    many = dead_leaves(70, 16, seed=1)
    assert np.array_equal(many[:5], dead_leaves(5, 16, seed=1))
    assert np.array_equal(many[:64], dead_leaves(64, 16, seed=1))


def test_power_spectrum_falls_as_that_of_natural_images(images):
    # Natural images: power falls about as frequency^-2.
    assert -3 < slope(images) < -1.5


def test_white_noise_would_not_pass_for_natural(images):
    noise = np.random.default_rng(0).integers(0, 256, images.shape)
    assert abs(slope(noise)) < 0.2


def test_no_image_is_constant_and_no_two_are_alike(images):
    assert images.std(axis=(2, 3)).min() > 1
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_images_use_the_range_without_drowning_in_black_or_white(images):
    assert 90 < images.mean() < 165
    assert ((images == 0) | (images == 255)).mean() < 0.15


def test_channels_vary_together_more_than_apart(images):
    pixels = images.transpose(1, 0, 2, 3).reshape(3, -1)
    correlations = np.corrcoef(pixels)[np.triu_indices(3, 1)]
    assert (correlations > 0.5).all()
    assert (correlations < 0.99).all()


def test_edges_make_differences_heavier_tailed_than_gaussian(images):
    steps = np.diff(images.astype(np.float64).mean(axis=1), axis=-1)
    kurtosis = np.mean(steps**4) / np.mean(steps**2) ** 2
    assert kurtosis > 5  # 3 for a Gaussian, well above for natural images
