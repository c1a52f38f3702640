"""Source editing: transfer functions, spectra and edited images."""

import math

import numpy as np
import pytest
import torch

from fedkd import seeding
from fedkd.fourier import editing
from fedkd.fourier.rings import radii

SIZES = [(32, 32), (31, 33), (28, 30)]


def notch(height, width, depth=1.0):
    return editing.notch(height, width, centre=0.6, spread=0.05, depth=depth)


def noise(num=4, height=32, width=32):
    return torch.rand((num, 3, height, width), generator=seeding.generator(0, "noise")).double()


def power_law(exponent, num=64, size=32, purpose="source"):
    """Images whose power falls with radius^exponent, by numpy and the full plane, as bytes."""
    y, x = (2 * np.fft.fftfreq(size) for _ in range(2))
    radius = np.hypot(y[:, None], x[None, :])
    radius[0, 0] = np.inf
    white = seeding.rng(0, purpose).standard_normal((num, 3, size, size))
    images = np.fft.ifft2(np.fft.fft2(white) * radius ** (-exponent / 2)).real
    images *= 0.12 / images.std((2, 3), keepdims=True)
    return ((images + 0.5) * 255).round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_full_plane_of_numpy_gives_the_same_image_and_it_is_real(size):
    images, radius = noise(2, *size).numpy(), radii(*size).numpy()
    full = 1 - 0.7 * np.exp(-((radius - 0.6) ** 2) / (2 * 0.05**2))
    full[0, 0] = 1
    expected = np.fft.ifft2(np.fft.fft2(images) * full)
    assert abs(expected.imag).max() < 1e-12
    edited = editing.edit(torch.from_numpy(images), notch(*size, depth=0.7))
    np.testing.assert_allclose(edited.numpy(), expected.real, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_means_and_phases_stay(size):
    images = noise(2, *size)
    edited = editing.edit(images, notch(*size, depth=0.9))
    torch.testing.assert_close(edited.mean((2, 3)), images.mean((2, 3)))
    before, after = torch.fft.rfft2(images), torch.fft.rfft2(edited)
    turned = (before.conj() * after).angle().abs()
    assert turned.max() < 1e-9


def test_a_wide_notch_leaves_the_mean_alone():
    assert editing.notch(8, 8, centre=0.1, spread=1.0, depth=1.0)[0, 0] == 1


def test_a_notch_has_its_depth_at_its_centre_and_nothing_far_from_it():
    # On 40 px the bin (0, 12) has the radius 2 * 12 / 40 = 0.6, (0, 13) is 0.05 further out.
    transfer = notch(40, 40, depth=0.8)
    assert transfer[0, 12] == pytest.approx(0.2)
    assert transfer[0, 13] == pytest.approx(1 - 0.8 * math.exp(-0.5))
    images = noise(height=40, width=40)
    before, after = (torch.fft.rfft2(x).abs() for x in (images, editing.edit(images, transfer)))
    far = (radii(40, 40)[:, :21] - 0.6).abs() > 0.4
    torch.testing.assert_close(after[..., far], before[..., far])
    assert (after[..., 0, 12] / before[..., 0, 12]).mean() == pytest.approx(0.2)


def test_depth_zero_gives_every_byte_back():
    images = seeding.rng(0, "bytes").integers(0, 256, (3, 3, 31, 33), dtype=np.uint8)
    images[0] = 255
    edited, clipped = editing.edit_bytes(images, notch(31, 33, depth=0.0))
    np.testing.assert_array_equal(edited, images)
    assert edited.dtype == np.uint8
    assert clipped == 0


def test_values_that_leave_the_range_are_clipped_and_counted():
    # A checkerboard of 0 and 200 around its mean 100: at twice the amplitude -100 and 300.
    board = np.indices((8, 8)).sum(0) % 2 * 200
    transfer = torch.ones(8, 5, dtype=torch.float64)
    transfer[4, 4] = 2
    edited, clipped = editing.edit_bytes(board.astype(np.uint8)[None, None], transfer)
    np.testing.assert_array_equal(edited[0, 0], np.where(board > 0, 255, 0))
    assert clipped == 1


def test_radial_psd_of_white_noise_is_its_variance_whatever_the_size():
    for size in (16, 33):
        shape = (400, 3, size, size)
        white = seeding.rng(0, "white", size).integers(0, 256, shape, dtype=np.uint8)
        psd = editing.radial_psd([white[:100], white[100:]])
        expected = (256**2 - 1) / 12 / 255**2
        torch.testing.assert_close(psd, torch.full((size // 2,), expected).double(), rtol=0.06,
                                   atol=0)  # fmt: skip


def test_radial_psd_does_not_depend_on_batches():
    images = power_law(1, num=6)
    torch.testing.assert_close(
        editing.radial_psd([images]), editing.radial_psd([images[:1], images[1:]])
    )


def test_distance_is_the_kl_divergence_of_shares():
    first, second = torch.tensor([3.0, 1.0]), torch.tensor([10.0, 10.0])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert editing.psd_distance(first, second) == pytest.approx(expected)
    assert editing.psd_distance(first, 7 * first) == pytest.approx(0)


@pytest.mark.parametrize(
    ("own", "wanted", "before", "after"),
    [(1, 3, 0.6, 0.01), (3, 1, 1.0, 0.01), (2, 0, 1.3, 0.01), (0, 3, 1.9, 0.1)],
)
def test_matching_brings_planted_spectra_together(own, wanted, before, after):
    images, target = power_law(own), editing.radial_psd([power_law(wanted, purpose="target")])
    psd = editing.radial_psd([images])
    edited, _ = editing.edit_bytes(images, editing.matching(32, 32, psd, target))
    assert editing.psd_distance(target, psd) > before
    assert editing.psd_distance(target, editing.radial_psd([edited])) < after


def test_matching_takes_the_root_of_the_ratio_ring_by_ring_and_keeps_the_mean():
    transfer = editing.matching(8, 8, torch.ones(4), torch.tensor([4.0, 9.0, 1.0, 0.25]))
    assert transfer[0].tolist() == pytest.approx([1, 2, 3, 1, 0.5])
    assert transfer[1, 1] == pytest.approx(2 + (math.sqrt(2) - 1))  # radius 0.25 sqrt(2)
    assert transfer[4, 4] == 0.5  # a corner


def test_matching_changes_no_amplitude_by_more_than_eight():
    source, target = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([1e6, 1e-6, 1.0, 0.0])
    transfer = editing.matching(8, 8, source, target)
    assert transfer[0].tolist() == [1, 8, 0.125, 8, 1]


def test_target_of_another_size_is_read_at_the_same_radii():
    # Rings of 4 px have the radii 1/2 and 1; of 8 px 1/4, 1/2, 3/4 and 1.
    assert editing.at_radii(torch.tensor([2.0, 4.0]), 4).tolist() == [2, 2, 3, 4]
