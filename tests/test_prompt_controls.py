"""The controls of learned prompts: jitter has its magnitude, amplitude_mix mixes amplitudes."""

import math

import numpy as np
import pytest
import torch

from fedkd import config, seeding
from fedkd.errors import ConfigError
from fedkd.fourier import spectrum
from fedkd.fourier.config import PromptConfig
from fedkd.fourier.prompter import Prompter
from fedkd.recipe import Recipe
from tests.prompt_scene import make_generator


def images(num=4, height=32, width=32):
    rng = seeding.generator(0, "images", height, width)
    return torch.rand(num, 3, height, width, generator=rng)


@pytest.mark.parametrize(
    ("size", "num"), [((16, 16), 600), ((28, 28), 600), ((29, 31), 600), ((64, 64), 200),
                      ((65, 90), 200), ((224, 224), 24)]
)  # fmt: skip
@pytest.mark.parametrize("magnitude", [0.2, 1.0])
def test_jitter_has_the_magnitude_that_was_asked_for(size, num, magnitude):
    network = make_generator("jitter", size, magnitude=magnitude)
    z = torch.randn(num, network.latent_dim, generator=seeding.generator(0, "z"))
    # The grid has at least 12 independent values per prompt, so that the error is about 0.01.
    assert float(network(z).abs().mean()) == pytest.approx(magnitude, rel=0.04)


def test_jitters_mean_before_the_bound_by_hand():
    # With a far bound, E|g| = sqrt(2/pi) sd in each bin: the mirrored columns and frequency 0 too.
    network = make_generator("jitter", (28, 28), magnitude=0.4, max_gain=math.exp(50.0))
    z = torch.randn(5000, network.latent_dim, generator=seeding.generator(0, "z"))
    gains = network(z)[:, 0]
    deviation = 0.4 / math.sqrt(2 / math.pi)
    torch.testing.assert_close(gains.std(0), torch.full((28, 15), deviation), rtol=0.06, atol=0)
    assert gains.mean(0).abs().max() < 0.04
    assert float(gains[:, 0, 0].abs().mean()) == pytest.approx(0.4, rel=0.05)


def test_jitter_is_as_smooth_as_a_coarse_grid_makes_it():
    network = make_generator("jitter", (64, 64))
    z = torch.randn(64, network.latent_dim, generator=seeding.generator(0, "z"))
    g = network(z)[..., 1:-1]
    near = (g[..., 1:] - g[..., :-1]).abs().mean()
    far = (g[..., 16:] - g[..., :-16]).abs().mean()
    assert near < 0.25 * far


def test_jitter_keeps_the_mean_where_prompts_do():
    u = images()
    for keep_dc in (True, False):
        prompter = Prompter(PromptConfig(generator="jitter", keep_dc=keep_dc, magnitude=0.2),
                            make_generator("jitter", magnitude=0.2))  # fmt: skip
        drawn = prompter.draw(4, seeding.generator(0, "draw"), u)
        out = prompter.apply(0.2 * u, prompter.log_gains(drawn.latents), torch.ones(4)).pixels
        moved = (out.mean((2, 3)) - 0.2 * u.mean((2, 3))).abs().max()
        assert (moved < 1e-3) == keep_dc


@pytest.mark.parametrize("size", [(32, 32), (31, 33), (28, 30)])
@pytest.mark.parametrize("keep_dc", [True, False])
def test_amplitude_mix_is_that_of_numpy(size, keep_dc):
    # Oracles O3 and O4. Of what numpy gives, only the clamp is missing.
    u = 0.4 + 0.2 * images(3, *size)
    strengths = torch.tensor([0.0, 0.3, 1.0])
    prompter = Prompter(PromptConfig(generator="amplitude_mix", keep_dc=keep_dc), None)
    rng = seeding.generator(0, "draw")
    seen = prompter.mix_amplitudes(u, u.roll(-1, 0), strengths)
    spectra = np.fft.fft2(u.double().numpy())
    amplitudes = np.abs(spectra)
    share = strengths.double().numpy()[:, None, None, None]
    mixed = (1 - share) * amplitudes + share * amplitudes[[1, 2, 0]]
    if keep_dc:
        mixed[..., 0, 0] = amplitudes[..., 0, 0]
    expected = np.fft.ifft2(mixed * np.exp(1j * np.angle(spectra))).real.clip(0, 1)
    np.testing.assert_allclose(seen.pixels, expected, atol=2e-6)
    # What the prompter draws is this mix with the next image.
    strengths = prompter.draw(3, seeding.generator(0, "draw"), u).strengths
    expected = prompter.mix_amplitudes(u, u.roll(-1, 0), strengths).pixels
    assert torch.equal(prompter(u, rng).pixels, expected)


def test_amplitude_mix_leaves_empty_bins_and_black_images_alone():
    u = torch.stack([torch.zeros(3, 16, 16), torch.full((3, 16, 16), 0.25), images(1, 16, 16)[0]])
    prompter = Prompter(PromptConfig(generator="amplitude_mix"), None)
    black, flat, _ = prompter.prompted(u, torch.ones(3), None).pixels
    assert not black.any(), "it has no phase"
    # The flat image takes the other's mean, and nothing else, as only its mean has a phase.
    torch.testing.assert_close(flat, u[2].mean((1, 2)).view(3, 1, 1).expand(3, 16, 16))
    assert (spectrum.amplitude(spectrum.rfft2(flat))[:, 1:, 1:] < 1e-4).all()


def test_a_batch_of_one_has_no_other_image():
    u = images(1)
    prompter = Prompter(PromptConfig(generator="amplitude_mix"), None)
    torch.testing.assert_close(prompter.full(u, seeding.generator(0, "z")).pixels, u)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"form": "mix"}, "form is 'mix', but generator = 'amplitude_mix' has no gains"),
        ({"max_gain": 2.0}, r"max_gain is 2\.0, but .*; leave max_gain out, or choose another"),
        ({"magnitude": 0.7}, r"magnitude is 0\.7, but generator = 'amplitude_mix'"),
        ({"bank_size": 4}, "bank_size is 4, but generator = 'amplitude_mix'"),
        (
            {"generator": "jitter", "magnitude": 1.5},
            r"magnitude is 1\.5, but max_gain = 4\.0 bounds log-gains at 1\.386; it must be below",
        ),
    ],
)
def test_settings_that_would_have_no_effect_are_refused(given, text):
    values = {"generator": "amplitude_mix", **given}
    with pytest.raises(ConfigError, match=text) as caught:
        config.build(Recipe, {"prompts": values})
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith("prompts: ")


@pytest.mark.parametrize("generator", ["jitter", "amplitude_mix"])
@pytest.mark.parametrize(
    ("section", "key", "value", "what"),
    [("explore", "gamma", 0.3, "explore"), ("prompts", "shared", "by_examples", "share")],
)
def test_controls_have_nothing_to_explore_or_to_share(generator, section, key, value, what):
    values: dict = {"prompts": {"generator": generator}}
    values.setdefault(section, {})[key] = value
    text = f"{section}.{key} is {value!r}, but .* '{generator}' is a control, .* nothing to {what};"
    with pytest.raises(ConfigError, match=text) as caught:
        config.build(Recipe, values)
    assert len(str(caught.value).splitlines()) == 1
    values.setdefault("objective", {})["name"] = "ekd"
    config.build(Recipe, values)  # has no prompts


def test_a_control_that_was_saved_loads_again(tmp_path):
    for generator in ("jitter", "amplitude_mix"):
        recipe = config.build(Recipe, {"prompts": {"generator": generator}})
        (tmp_path / "a.toml").write_text(config.dump(recipe))
        assert config.load(Recipe, tmp_path / "a.toml") == recipe
