"""Gradient PSD: rings by hand, and spectra that were planted."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedkd import seeding
from fedkd.fourier.priority import (
    band_share,
    centroid,
    feature_psd,
    gradient_psd,
    input_gradients,
    priority,
)
from fedkd.fourier.rings import num_rings, radii, ring_frequencies, ring_means, ring_of


def noise(*shape, purpose="noise", dtype=torch.float32):
    return torch.randn(shape, generator=seeding.generator(0, purpose)).to(dtype)


def band_pass(height, width, low, high):
    """1 where low <= radius < high, by NumPy."""
    rows, columns = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    radius = 2 * np.sqrt(rows**2 + columns**2)
    return torch.from_numpy(((radius >= low) & (radius < high)).astype(np.float64))


def filtered(images, gain):
    return torch.fft.ifft2(torch.fft.fft2(images) * gain).real


def test_radius_and_ring_of_a_small_plane_by_hand():
    # 4 x 4: frequencies 0, 1/4, -1/2, -1/4 cycles per px, and K = 2.
    expected = torch.tensor([0, 0.5, 1, 0.5], dtype=torch.float64)
    assert torch.equal(radii(4, 4)[0], expected)
    assert radii(4, 4)[1, 1] == pytest.approx(math.sqrt(0.5))
    assert radii(4, 4)[2, 2] == pytest.approx(math.sqrt(2))
    assert ring_of(4, 4).tolist() == [[0, 1, 2, 1], [1, 1, 2, 1], [2, 2, 3, 2], [1, 1, 2, 1]]
    assert ring_frequencies(4, 4).tolist() == [0.5, 1.0]
    # Ring 1: 8 bins. Ring 2: six. Neither the mean (100) nor the corner (1000) is in either.
    plane = torch.tensor([[100, 1, 2, 1], [1, 3, 2, 3], [2, 2, 1000, 2], [1, 3, 2, 3]])
    assert ring_means(plane.float()).tolist() == [2.0, 2.0]


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 40), st.integers(2, 40))
def test_rings_agree_with_a_loop_at_all_sizes_and_none_is_empty(height, width):
    plane = noise(height, width, dtype=torch.float64)
    num = min(height, width) // 2
    found = {}
    for u in range(height):
        for v in range(width):
            f = 2 * math.hypot(min(u, height - u) / height, min(v, width - v) / width)
            # Exact halves go to either side by rounding errors, in longer images.
            if abs(f * num % 1 - 0.5) < 1e-9:
                return
            found.setdefault(round(f * num), []).append(float(plane[u, v]))
    assert num_rings(height, width) == num
    expected = [np.mean(found[k]) for k in range(1, num + 1)]
    np.testing.assert_allclose(ring_means(plane), expected, atol=1e-12)


@pytest.mark.parametrize("wave", [(0, 3), (7, 0), (6, 8), (5, 12), (20, 21), (0, 31)])
def test_all_energy_of_a_sinusoid_lies_in_the_ring_of_its_radius(wave):
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    image = torch.cos(2 * math.pi * (wave[0] * rows + wave[1] * columns) / 64 + 0.3)
    shares = priority(gradient_psd(image[None, None].double()))[0]
    k = round(math.hypot(*wave))
    assert int(shares.argmax()) == k - 1
    assert float(shares[k - 1]) == pytest.approx(1, abs=1e-7)
    assert float(centroid(shares, 64, 64)) == pytest.approx(k / 32, abs=1e-7)


def test_white_noise_is_flat():
    shares = priority(gradient_psd(noise(1500, 3, 32, 32)).mean(0))
    assert shares.max() / shares.min() < 1.05
    assert float(centroid(shares, 32, 32)) == pytest.approx(17 / 32, abs=0.003)


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_slopes_of_coloured_noise_are_found(exponent):
    radius = radii(64, 64)
    radius[0, 0] = math.inf
    shares = priority(gradient_psd(filtered(noise(400, 1, 64, 64), radius ** (-exponent / 2))))
    logs = torch.stack([ring_frequencies(64, 64), shares.mean(0)]).log().numpy()
    # The first rings are wide for a spectrum so steep: their means lie above their middles.
    slope = np.polyfit(logs[0, 3:], logs[1, 3:], 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.03)


def test_a_linear_model_with_a_band_filter_has_all_its_priority_in_the_band():
    # Edges between rings: 31 px have K = 15.
    band = (4.5 / 15, 9.5 / 15)
    weight = filtered(noise(3, 31, 33, dtype=torch.float64), band_pass(31, 33, *band))
    gradients = input_gradients(lambda x: (x * weight).sum((1, 2, 3)), noise(2, 3, 31, 33).double())
    torch.testing.assert_close(gradients, weight.expand(2, -1, -1, -1))
    shares = priority(gradient_psd(gradients))
    assert shares.sum(1).tolist() == pytest.approx([1, 1])
    assert band_share(shares, 31, 33, band).tolist() == pytest.approx([1, 1], abs=1e-12)


def test_a_quadratic_band_pass_model_has_its_analytic_psd():
    # score = 1/2 |h * x|^2 has the gradient H^2 X in the frequency plane.
    images, gain = noise(4, 3, 32, 32), band_pass(32, 32, 0.2, 0.6).float()
    gradients = input_gradients(
        lambda x: 0.5 * torch.fft.ifft2(torch.fft.fft2(x) * gain).real.square().sum((1, 2, 3)),
        images,
    )
    found = gradient_psd(gradients, normalised=False)
    spectra = np.fft.fft2(images.double().numpy(), norm="ortho")
    expected = (np.abs(spectra) ** 2 * gain.numpy() ** 4).sum(1)
    np.testing.assert_allclose(found, expected, atol=1e-6 * expected.max())


@pytest.mark.parametrize("size", [(16, 16), (15, 17), (9, 4)])
def test_the_psd_sums_to_the_squared_gradient_in_float64(size):
    gradients = noise(5, 3, *size)
    psd = gradient_psd(gradients, normalised=False)
    assert psd.dtype == torch.float64
    torch.testing.assert_close(psd.sum((1, 2)), gradients.double().square().sum((1, 2, 3)))
    torch.testing.assert_close(gradient_psd(gradients).sum((1, 2)), torch.ones(5).double())


def test_normalised_images_count_equally_and_one_without_a_gradient_not():
    gradients = noise(3, 1, 8, 8)
    gradients[1], gradients[2] = 1000 * gradients[0], 0
    psd = gradient_psd(gradients)
    torch.testing.assert_close(psd[0], psd[1])
    assert psd[2].count_nonzero() == 0
    assert priority(psd[2]).isnan().all()


def small_network():
    with seeding.isolated(0, "small network"):
        return nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 36, 5)
        ).double()


def test_random_projections_are_unbiased_for_the_psd_of_the_whole_jacobian():
    network, image = small_network(), noise(1, 2, 6, 6, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(network, image)[0, :, 0]
    expected = gradient_psd(jacobian, normalised=False).sum(0)
    rng = seeding.generator(0, "directions")
    found = feature_psd(network, image.repeat(200, 1, 1, 1), rng, num_draws=40, normalised=False)
    error = (found.mean(0) - expected).abs().max() / expected.max()
    assert error < 0.04
    # The same draws, four at a time: rougher, so that the test above can fail.
    few = feature_psd(network, image, seeding.generator(1, ""), num_draws=1, normalised=False)
    assert (few[0] - expected).abs().max() / expected.max() > 0.04


def test_draws_are_of_their_generator_alone_and_each_image_has_its_own():
    network, images = small_network(), noise(1, 2, 6, 6, dtype=torch.float64).repeat(2, 1, 1, 1)
    first, again = (feature_psd(network, images, seeding.generator(3, "v")) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])


def test_images_are_independent_in_eval_mode_and_networks_stay_as_they_are(teacher):
    images = noise(4, 3, 16, 16)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}

    def score(pixels):
        return teacher(pixels).square().sum(1)

    together = input_gradients(score, images)
    alone = torch.cat([input_gradients(score, image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-7)
    feature_psd(teacher, images, seeding.generator(0, "v"))
    after = teacher.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not images.requires_grad


def test_gradients_are_taken_under_no_grad_too():
    with torch.no_grad():
        gradients = input_gradients(lambda x: x.square().sum((1, 2, 3)), torch.ones(1, 1, 2, 2))
    assert torch.equal(gradients, torch.full((1, 1, 2, 2), 2.0))


def trained_on(band, steps=50):
    """A CNN that tells images with noise in a band from images without."""
    gain = band_pass(32, 32, *band).float()
    rng = seeding.generator(0, f"planted {band}")

    def draw(num):
        labels = torch.arange(num) % 2
        planted = filtered(torch.randn(num, 1, 32, 32, generator=rng), gain)
        planted /= planted.std((1, 2, 3), keepdim=True)
        images = torch.randn(num, 1, 32, 32, generator=rng)
        return images + 0.6 * labels.view(-1, 1, 1, 1) * planted, labels

    with seeding.isolated(0, f"cnn {band}"):
        network = nn.Sequential(
            nn.Conv2d(1, 8, 9, padding=4), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
        )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    untrained = _share(network, band, draw)
    for _ in range(steps):
        images, labels = draw(48)
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return untrained, _share(network, band, draw)


def _share(network, band, draw):
    network.eval()
    images, labels = draw(64)

    def loss(pixels):
        return F.cross_entropy(network(pixels).double(), labels, reduction="none")

    shares = priority(gradient_psd(input_gradients(loss, images)).mean(0))
    network.train()
    peak = float(ring_frequencies(32, 32)[shares.argmax()])
    return float(band_share(shares, 32, 32, band)), peak


@pytest.mark.slow
@pytest.mark.parametrize("band", [(0.1, 0.2), (0.3, 0.4), (0.5, 0.6), (0.75, 0.85)])
def test_a_network_that_was_taught_a_band_has_its_peak_in_it(band):
    (before, _), (share, peak) = trained_on(band)
    assert band[0] - 1 / 32 <= peak < band[1] + 1 / 32
    assert share > 1.5 * before
