import math

import numpy as np
import pytest
import torch

from fedkd import seeding
from fedkd.fourier.priority import gradient_psd, input_gradients, priority
from fedkd.fourier.rings import num_rings, radii, ring_of
from fedkd.shortcuts.artefact import (
    add_artefact,
    alignment,
    artefact,
    artefact_profile,
    has_bins,
)

SIZES = [(32, 32), (31, 33), (28, 30)]
BAND = (0.3, 0.5)


def draw(shape, band=BAND, key=0):
    return artefact(shape, band, seeding.rng(0, "test artefact", key))


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("band", [(0.3, 0.5), (0.0, 0.2), (0.9, 1.42)])
def test_an_artefact_is_the_full_planes_formula_at_unit_rms(shape, band):
    white = seeding.rng(0, "test artefact", 0).standard_normal(shape)
    low, high = band
    radius = radii(*shape).numpy()
    full = np.fft.ifft2(np.fft.fft2(white) * ((radius >= low) & (radius < high)))
    assert np.abs(full.imag).max() < 1e-12
    expected = full.real / np.sqrt((full.real**2).mean())
    np.testing.assert_allclose(draw(shape, band), expected, atol=1e-12)


@pytest.mark.parametrize("shape", SIZES)
def test_all_power_of_an_artefact_lies_in_its_band(shape):
    power = np.abs(np.fft.fft2(draw(shape))) ** 2
    radius = radii(*shape).numpy()
    inside = (radius >= BAND[0]) & (radius < BAND[1])
    assert power[inside].sum() / power.sum() == pytest.approx(1, abs=1e-12)
    assert np.sqrt(np.mean(draw(shape) ** 2)) == pytest.approx(1)


def test_equal_generators_give_equal_artefacts_and_others_others():
    assert np.array_equal(draw((16, 16)), draw((16, 16)))
    assert not np.allclose(draw((16, 16)), draw((16, 16), key=1))


def test_the_mark_is_added_alike_to_all_channels_clipped_and_rounded():
    image = np.array([[[10, 250]], [[0, 128]], [[100, 101]]], np.uint8)
    add_artefact(image, 0.1, np.array([[-1.0, 0.5]]))
    # 255 * 0.1 = 25.5 down and 12.75 up: -15.5 and 262.75 are clipped, 74.5 rounds to even.
    assert image.tolist() == [[[0, 255]], [[0, 141]], [[74, 114]]]


def test_floats_are_taken_for_zero_to_one_and_keep_their_dtype():
    image = np.array([[[0.5, 0.95]]], np.float32)
    add_artefact(image, 0.1, np.array([[1.0, 1.0]]))
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, [[[0.6, 1.0]]], rtol=1e-6)


def test_a_band_between_two_frequencies_has_no_bins():
    assert not has_bins(16, 16, (0.0, 0.1))  # the lowest frequency is 1 / 8
    assert has_bins(16, 16, (0.0, 0.126))
    assert not has_bins(16, 16, (1.415, 1.42))
    assert has_bins(16, 16, (1.41, 1.42))


def test_the_profile_is_the_expected_power_by_rings():
    power = sum(np.abs(np.fft.fft2(draw((32, 32), key=key))) ** 2 for key in range(300))
    measured = priority(torch.from_numpy(power))
    profile = artefact_profile(32, 32, BAND)
    assert float(profile.sum()) == pytest.approx(1)
    np.testing.assert_allclose(measured, profile, atol=0.004)
    assert float(alignment(measured, profile)) > 0.999


def test_a_profile_by_hand():
    # 8 px: K = 4; the band 0.5 to 0.75 takes of ring 2 (radius 0.375 to 0.625) the 4 bins at 0.5
    # and the 8 at sqrt(0.25^2 + 0.5^2) = 0.559; ring 3 has 4 at sqrt(0.5) = 0.707 inside.
    ring, radius = ring_of(8, 8), radii(8, 8)
    inside = (radius >= 0.5) & (radius < 0.75)
    shares = [float(inside[ring == k].double().mean()) for k in range(1, 5)]
    assert [int(inside[ring == k].sum()) for k in range(1, 5)] == [0, 12, 4, 0]
    expected = np.array(shares) / sum(shares)
    np.testing.assert_allclose(artefact_profile(8, 8, (0.5, 0.75)), expected)


def test_alignment_is_one_for_the_profile_zero_beside_it_and_known_for_a_flat_priority():
    profile = torch.tensor([0.0, 0.5, 0.5, 0.0], dtype=torch.float64)
    models = torch.tensor(
        [[0, 0.5, 0.5, 0], [0.3, 0, 0, 0.7], [0.25] * 4, [0, 1, 0, 0]], dtype=torch.float64
    )
    expected = [1, 0, math.sqrt(2 / 4), math.sqrt(1 / 2)]
    np.testing.assert_allclose(alignment(models, profile), expected, atol=1e-12)


def test_alignment_is_not_defined_where_the_band_lies_in_the_corners():
    profile = artefact_profile(16, 16, (1.3, 1.42))
    assert float(profile.sum()) == 0
    assert math.isnan(alignment(torch.full((8,), 1 / 8, dtype=torch.float64), profile))


def test_a_model_that_reads_the_mark_alone_is_aligned_and_one_that_reads_another_band_is_not():
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    profile = artefact_profile(32, 32, BAND)
    found = []
    for band in (BAND, (0.6, 0.8)):
        weights = torch.from_numpy(sum(draw((32, 32), band, key) for key in range(40)))
        gradients = input_gradients(lambda x, w=weights: (x * w).sum((1, 2, 3)), pixels)
        shares = priority(gradient_psd(gradients).mean(0))
        assert len(shares) == num_rings(32, 32)
        found.append(float(alignment(shares, profile)))
    assert found[0] > 0.9
    assert found[1] < 1e-6
