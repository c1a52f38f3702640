"""Generators: size, bound, symmetry, start, and that z alone decides."""

import math

import pytest
import torch
from torch import nn

from fedkd import seeding
from fedkd.fourier import prompts, spectrum
from fedkd.fourier.generators.factory import GENERATORS
from tests.prompt_scene import LEARNED, make_generator

WITH_GAINS = (*LEARNED, "jitter")
SIZES = [(16, 16), (28, 28), (31, 33), (33, 50), (64, 64)]
LARGE = (224, 224)


def latents(network, num=4, seed=0):
    return torch.randn(num, network.latent_dim, generator=seeding.generator(seed, "latents"))


def saturated(name, size):
    """Far into the bound."""
    if name == "jitter":
        return make_generator(name, size, magnitude=1.38)
    network = make_generator(name, size)
    with torch.no_grad():
        list(network.parameters())[0 if name == "bank" else -2].mul_(300)
    return network


def test_every_generator_is_tested_here():
    assert {*WITH_GAINS, "amplitude_mix"} == set(GENERATORS)
    assert make_generator("amplitude_mix") is None


@pytest.mark.parametrize("size", [*SIZES, LARGE])
@pytest.mark.parametrize("name", WITH_GAINS)
def test_log_gains_are_bounded_symmetric_and_as_large_as_a_half_spectrum(name, size):
    # Oracle O5: symmetric, so that amplitudes are the requested ones.
    network = saturated(name, size)
    num = 1 if size == LARGE else 3
    with torch.no_grad():
        g = network(latents(network, num))
    assert g.shape == (num, 3, size[0], size[1] // 2 + 1)
    assert 1.3 < g.abs().max() <= math.log(4) + 1e-6
    torch.testing.assert_close(spectrum.symmetrise(g, size[1]), g, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(28, 28), (31, 33), (32, 32)])
@pytest.mark.parametrize("name", WITH_GAINS)
def test_prompted_images_are_real_with_the_requested_amplitude_and_phase(name, size):
    # Oracles O2, O3, O4.
    network = saturated(name, size).double()
    with torch.no_grad():
        g = network(latents(network).double())
    u = torch.rand(4, 3, *size, generator=seeding.generator(0, "u"), dtype=torch.float64)
    full = spectrum.full_from_half(g.exp(), size[1])
    plane = torch.fft.ifft2(torch.fft.fft2(u) * full)
    assert plane.imag.abs().max() < 1e-6
    strength = torch.full((4,), 1.0, dtype=torch.float64)
    out = prompts.apply_prompt(u, g, strength, form="gain", keep_dc=False)
    torch.testing.assert_close(out, plane.real)
    ratio = spectrum.rfft2(out) / spectrum.rfft2(u)
    torch.testing.assert_close(ratio.real, g.exp(), rtol=1e-4, atol=0)
    assert ratio.angle().abs().max() < 5e-5


@pytest.mark.parametrize("name", WITH_GAINS)
def test_a_black_image_has_finite_gradients_and_stays_black(name):
    # Oracle O7.
    network = make_generator(name, (31, 33))
    u = torch.zeros(1, 3, 31, 33, requires_grad=True)
    seen = prompts.prompt(
        u, network(latents(network, 1)), torch.ones(1), form="gain", keep_dc=False
    )
    (seen.pixels.square().sum() + seen.out_of_range).backward()
    assert all(torch.isfinite(t.grad).all() for t in (u, *network.parameters()))
    assert not seen.pixels.any()


@pytest.mark.parametrize(
    ("name", "num_parameters"), [("conv", 44_451), ("radial", 12_964), ("bank", 26_112),
                                 ("mlp", 42_247), ("jitter", 0)]
)  # fmt: skip
def test_generators_have_the_specified_size(name, num_parameters):
    assert sum(one.numel() for one in make_generator(name).parameters()) == num_parameters


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (31, 33), LARGE])
@pytest.mark.parametrize("name", LEARNED)
def test_learned_generators_start_near_the_identity(name, size):
    network = make_generator(name, size)
    with torch.no_grad():
        assert 0.005 < network(latents(network, 4)).abs().mean() < 0.2


@pytest.mark.parametrize("name", WITH_GAINS)
def test_z_alone_decides_and_a_batch_of_one_is_enough(name):
    network = make_generator(name)
    z = latents(network)
    with torch.no_grad():
        together, alone = network.train()(z), network(z[:1])
    torch.testing.assert_close(together[:1], alone)
    assert torch.equal(network(z), together)
    assert len({tuple(g.flatten().tolist()) for g in together}) > 1
    norms = (nn.modules.batchnorm._BatchNorm, nn.Dropout)
    assert not any(isinstance(module, norms) for module in network.modules())


@pytest.mark.parametrize("name", ["conv", "radial", "mlp"])
def test_output_is_smooth_around_frequency_zero(name):
    # The neighbours of row 0 are rows 1 and -1, and the seam is at height / 2.
    network = make_generator(name, (64, 64))
    g = network(latents(network, 16)).detach()
    steps = (g - g.roll(1, -2)).abs().mean((0, 1, 3))
    if name != "radial":  # has no seam
        assert steps.argmax() == 32
        assert steps[0] < steps[32] / 2
    assert steps[:2].max() < 0.4 * (g - g.mean((-2, -1), keepdim=True)).abs().mean()


def test_radial_gains_are_interpolated_between_rings():
    network = make_generator("radial", (16, 16))
    rings = torch.arange(12.0)  # of each channel: the ring's number
    with torch.no_grad():
        network.fc2.weight.zero_()
        network.fc2.bias.copy_(rings.repeat(3) * 0.01)
        g = network.unbounded(latents(network, 1))[0, 0]
    # 11 steps from radius 0 to sqrt(2); row 4 of 16 is half of Nyquist, column 8 Nyquist.
    assert g[0, 0] == 0
    assert float(g[4, 0]) == pytest.approx(0.11 * 0.5 / math.sqrt(2), rel=1e-5)
    assert float(g[8, 8]) == pytest.approx(0.11, rel=1e-5)
    assert float(g[-4, 3]) == pytest.approx(0.11 * 0.625 / math.sqrt(2), rel=1e-5)


def test_radial_weights_fit_images_of_any_size():
    small, large = make_generator("radial", (28, 28)), make_generator("radial", (56, 56), seed=1)
    large.load_state_dict(small.state_dict())
    z = latents(small)
    # Row 14 of 28 px and row 28 of 56 px are Nyquist, row 7 and 14 half of it.
    torch.testing.assert_close(small(z)[..., [0, 7, 14], 0], large(z)[..., [0, 14, 28], 0])


def test_bank_draws_each_prompt_as_often_as_another_and_learns_those_drawn():
    network = make_generator("bank", bank_size=4)
    z = latents(network, 4000)
    counts = torch.bincount(z.argmax(1), minlength=4)
    assert (counts - 1000).abs().max() < 120
    network(torch.tensor([[0.0, 3.0, 1.0, -1.0]])).sum().backward()
    assert [bool(g.any()) for g in network.maps.grad] == [False, True, False, False]
    torch.testing.assert_close(
        network.unbounded(torch.eye(4)), network.maps.detach(), atol=0, rtol=0
    )


@pytest.mark.parametrize("name", WITH_GAINS)
@pytest.mark.parametrize("size", [(15, 32), (32, 8)])
def test_images_below_sixteen_px_are_refused(name, size):
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} px; .* at least 16x16"):
        make_generator(name, size)
