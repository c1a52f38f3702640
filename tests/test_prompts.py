import math

import pytest
import torch
from pydantic import ValidationError

from fedkd import seeding
from fedkd.fourier import prompts, spectrum
from fedkd.fourier.config import PromptConfig
from fedkd.fourier.generators.conv import ConvGenerator

SIZES = [(32, 32), (31, 33), (28, 30), (16, 16)]
LARGE = (224, 224)


def images(height=32, width=32, num=4, dtype=torch.float32):
    rng = seeding.generator(0, "images", height, width)
    return torch.rand(num, 3, height, width, generator=rng).to(dtype)


def latents(num=4, seed=0):
    return torch.randn(num, 64, generator=seeding.generator(seed, "latents"))


def make_generator(height=32, width=32, seed=0, max_gain=4.0):
    with seeding.isolated(seed, "fpg"):
        return ConvGenerator(3, height, width, latent_dim=64, max_gain=max_gain)


def strong_gains(height=32, width=32, num=4):
    """Log-gains that use the whole range, as those of a trained generator."""
    rng = seeding.generator(3, "gains", height, width)
    values = torch.randn(num, 3, height, width // 2 + 1, generator=rng)
    return spectrum.symmetrise(math.log(4) * torch.tanh(values), width)


def mean_amplitude(height=32, width=32):
    return spectrum.mean_amplitude([images(height, width, num=8)])


def apply(u, log_gain, strength, form="gain", keep_dc=False, **more):
    strength = torch.full((len(u),), float(strength), dtype=u.dtype)
    return prompts.apply_prompt(u, log_gain, strength, form=form, keep_dc=keep_dc, **more)


@pytest.mark.parametrize("size", [*SIZES, LARGE])
@pytest.mark.parametrize("strength", [0.0, 0.6, 1.0])
def test_zero_log_gain_is_the_identity(size, strength):
    # Oracle O1.
    u = images(*size, num=2)
    nothing = torch.zeros(2, 3, size[0], size[1] // 2 + 1)
    torch.testing.assert_close(apply(u, nothing, strength), u, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [*SIZES, LARGE])
@pytest.mark.parametrize("form", ["gain", "mix"])
def test_zero_strength_is_the_identity(size, form):
    # Oracle O1.
    u = images(*size, num=2)
    mean = mean_amplitude(*size)
    out = apply(u, strong_gains(*size, num=2), 0.0, form=form, mean_amplitude=mean)
    torch.testing.assert_close(out, u, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["gain", "mix"])
def test_amplitude_is_the_requested_one(size, form):
    # Oracle O3: before the clamp.
    u, g, mean = images(*size), strong_gains(*size), mean_amplitude(*size).float()
    before = spectrum.amplitude(spectrum.rfft2(u))
    target = before if form == "gain" else mean
    requested = 0.3 * before + 0.7 * target * g.exp()
    seen = spectrum.amplitude(spectrum.rfft2(apply(u, g, 0.7, form=form, mean_amplitude=mean)))
    torch.testing.assert_close(seen, requested, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["gain", "mix"])
def test_phase_is_kept(size, form):
    # Oracle O4.
    u = images(*size, dtype=torch.float64)
    more = {"mean_amplitude": mean_amplitude(*size)}
    before = spectrum.rfft2(u)
    turned = spectrum.rfft2(apply(u, strong_gains(*size), 0.7, form=form, **more)) / before
    assert turned.angle().abs().max() < 5e-5
    single = spectrum.rfft2(apply(u.float(), strong_gains(*size), 0.7, form=form, **more))
    clear = before.abs() > 1
    assert (single / before).angle().abs()[clear].max() < 5e-5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("value", [0.0, 0.123, 0.7, 1.0])
@pytest.mark.parametrize("form", ["gain", "mix"])
def test_a_flat_image_stays_flat(size, value, form):
    # Oracle O6. Other pixels' amplitudes may not grow out of rounding errors.
    u = torch.full((2, 3, *size), value)
    more = {"mean_amplitude": mean_amplitude(*size)}
    out = apply(u, strong_gains(*size, num=2), 1.0, form=form, keep_dc=True, **more)
    torch.testing.assert_close(out, u, atol=1e-6, rtol=0)
    moved = apply(u, strong_gains(*size, num=2), 1.0, form=form, **more)
    spread = moved.amax((2, 3)) - moved.amin((2, 3))
    assert (spread <= 1e-6 * moved.amax((2, 3)).clamp_min(1)).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["gain", "mix"])
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_gradients_of_black_and_flat_images_are_finite(size, form, value):
    # Oracle O7.
    network = make_generator(*size)
    u = torch.full((2, 3, *size), value, requires_grad=True)
    seen = prompts.prompt(
        u,
        network(latents(2)),
        torch.ones(2),
        form=form,
        keep_dc=False,
        mean_amplitude=mean_amplitude(*size),
    )
    (seen.pixels.square().sum() + seen.out_of_range).backward()
    for tensor in (u, *network.parameters()):
        assert torch.isfinite(tensor.grad).all()


def test_gradient_of_a_prompt_is_that_of_finite_differences():
    u, g = images(17, 16, num=1, dtype=torch.float64), strong_gains(17, 16, num=1).double()
    mean = mean_amplitude(17, 16)
    for form in ("gain", "mix"):
        assert torch.autograd.gradcheck(
            lambda log_gain, form=form: apply(u, log_gain, 0.7, form=form, mean_amplitude=mean),
            g.clone().requires_grad_(),
            fast_mode=True,
        )


@pytest.mark.parametrize("form", ["gain", "mix"])
def test_keep_dc_keeps_the_mean_of_each_image_and_channel(form):
    u, more = images(), {"mean_amplitude": mean_amplitude()}
    out = apply(u, strong_gains(), 1.0, form=form, keep_dc=True, **more)
    torch.testing.assert_close(out.mean((2, 3)), u.mean((2, 3)), atol=1e-6, rtol=0)
    free = apply(u, strong_gains(), 1.0, form=form, **more)
    assert (free.mean((2, 3)) - u.mean((2, 3))).abs().max() > 0.1
    ac = [spectrum.rfft2(v)[..., 1:] for v in (out, free)]
    torch.testing.assert_close(*ac, atol=1e-3, rtol=1e-4)


def test_full_mix_has_the_mean_amplitude_times_the_gain_whatever_the_image():
    g, mean = strong_gains(num=1), mean_amplitude()
    out = apply(images(), g, 1.0, form="mix", mean_amplitude=mean)
    seen = spectrum.amplitude(spectrum.rfft2(out))
    torch.testing.assert_close(seen, (mean.float() * g.exp()).expand_as(seen), rtol=1e-4, atol=1e-4)


def test_mix_without_mean_amplitude_is_refused():
    with pytest.raises(ValueError, match="needs mean_amplitude"):
        apply(images(), strong_gains(), 1.0, form="mix")


def test_one_log_gain_serves_all_images_of_a_batch():
    u, g = images(), strong_gains(num=1)
    torch.testing.assert_close(apply(u, g, 0.5), apply(u, g.expand(4, -1, -1, -1), 0.5))


def test_each_image_has_its_own_strength_and_gain():
    u, g, strength = images(), strong_gains(), torch.tensor([0.0, 0.3, 0.6, 1.0])
    together = prompts.apply_prompt(u, g, strength, form="gain", keep_dc=False)
    for i in range(4):
        torch.testing.assert_close(
            together[i : i + 1], apply(u[i : i + 1], g[i : i + 1], strength[i])
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_prompted_pixels_keep_their_dtype(dtype):
    seen = prompts.prompt(
        images(dtype=dtype), strong_gains(), torch.ones(4, dtype=dtype), form="gain", keep_dc=False
    )
    assert seen.pixels.dtype == dtype


def test_double_precision_prompts_are_exact_to_double_precision():
    u = images(31, 33, dtype=torch.float64)
    assert (apply(u, torch.zeros(4, 3, 31, 17).double(), 1.0) - u).abs().max() < 1e-14
    network = make_generator(31, 33).double()
    assert network(latents().double()).dtype == torch.float64


def test_autocast_changes_no_prompt():
    u, g = images(), strong_gains()
    plain = apply(u, g, 0.7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(apply(u, g, 0.7), plain)


def test_out_of_range_penalty_worked_by_hand():
    # A flat image of 0.4 times 4 is 1.6: clamped to 1, and 0.6 out of range everywhere.
    u = torch.full((1, 3, 16, 16), 0.4)
    g = torch.full((1, 3, 16, 9), math.log(4.0))
    seen = prompts.prompt(u, g, torch.ones(1), form="gain", keep_dc=False)
    torch.testing.assert_close(seen.pixels, torch.ones(1, 3, 16, 16))
    assert float(seen.out_of_range) == pytest.approx(0.6, abs=1e-6)
    # One pixel of 1 among 0 with its AC part doubled: 2 - 1/256 there, -1/256 elsewhere.
    spike = torch.zeros(1, 1, 16, 16)
    spike[..., 3, 5] = 1
    doubled = torch.full((1, 1, 16, 9), math.log(2.0))
    seen = prompts.prompt(spike, doubled, torch.ones(1), form="gain", keep_dc=True)
    torch.testing.assert_close(seen.pixels, spike, atol=1e-6, rtol=0)
    expected = (1 - 1 / 256 + 255 / 256) / 256
    assert float(seen.out_of_range) == pytest.approx(expected, rel=1e-4)
    assert float(seen.saturated) == 1


def test_rounding_at_white_and_black_pixels_is_no_saturation():
    u = (images() > 0.5).float()
    nothing = torch.zeros(4, 3, 32, 17)
    seen = prompts.prompt(u, nothing, torch.ones(4), form="gain", keep_dc=False)
    assert float(seen.saturated) == 0


def test_equal_seeds_give_equal_prompts():
    def draw(seed):
        network, u = make_generator(seed=seed), images()
        z, strength = prompts.draw_latents(
            4,
            seeding.generator(seed, "draw"),
            per="image",
            latent_dim=64,
            max_strength=1.0,
            like=u,
        )
        return prompts.prompt(u, network(z), strength, form="gain", keep_dc=False).pixels

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_latents_follow_the_config_and_not_the_dtype():
    def draw(per, dtype=torch.float32, max_strength=0.5):
        return prompts.draw_latents(
            500,
            seeding.generator(0, "draw"),
            per=per,
            latent_dim=8,
            max_strength=max_strength,
            like=torch.zeros(1, dtype=dtype),
        )

    z, strength = draw("image")
    assert z.shape == (500, 8)
    assert z.mean().abs() < 0.1
    assert z.std() == pytest.approx(1, abs=0.1)
    assert strength.shape == (500,)
    assert 0 <= strength.min() < 0.02
    assert 0.48 < strength.max() <= 0.5
    one, strength = draw("batch")
    assert one.shape == (1, 8)
    assert strength.shape == (500,)
    wide, _ = draw("image", torch.float64)
    assert torch.equal(wide, z.double())
    assert torch.equal(draw("image", max_strength=0.0)[1], torch.zeros(500))


def test_diversity_loss_worked_by_hand():
    # Shifted pairs: |0-1|, |1-3|, |3-0| = 6/3 for gains, |0-2|, |2-4|, |4-0| = 8/3 for latents.
    gains = torch.tensor([0.0, 1.0, 3.0]).view(3, 1, 1, 1)
    z = torch.tensor([[0.0], [2.0], [4.0]])
    assert float(prompts.diversity_loss(gains, z)) == pytest.approx(1 / (6 / 8 + 0.01))


@pytest.mark.parametrize("num", [1, 3])
def test_diversity_loss_of_equal_prompts_is_100_with_finite_gradients(num):
    gains = torch.ones(num, 3, 16, 9, requires_grad=True)
    loss = prompts.diversity_loss(gains, latents(num))
    loss.backward()
    assert loss.item() == pytest.approx(100)
    assert torch.isfinite(gains.grad).all()


def test_effective_rank_counts_directions():
    rng = seeding.generator(0, "rank")
    one = torch.randn(50, 1, generator=rng) * torch.ones(1, 3, 4, 4).flatten(1)
    assert prompts.effective_rank(one) == pytest.approx(1, abs=1e-4)
    basis = torch.linalg.qr(torch.randn(40, 5, generator=rng)).Q.T
    codes = torch.randn(50, 5, generator=rng)
    codes = torch.linalg.qr(codes - codes.mean(0)).Q  # five equal variances, means 0
    assert prompts.effective_rank((codes @ basis).view(50, 4, 10) + 7) == pytest.approx(5, abs=1e-3)
    assert prompts.effective_rank(torch.ones(5, 3, 2, 2)) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"form": "replace"},
        {"max_strength": 1.1},
        {"max_strength": -0.1},
        {"max_gain": 1.0},
        {"latent_dim": 0},
        {"bank_size": 1},
        {"per": "epoch"},
        {"strength": 1},
    ],
)
def test_config_refuses_values_out_of_range(wrong):
    with pytest.raises(ValidationError):
        PromptConfig(**wrong)
