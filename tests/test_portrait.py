"""What is measured of a client's prompts, on prompts whose effect is known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fedkd import seeding
from fedkd.fourier import portrait
from fedkd.fourier.config import PromptConfig
from fedkd.fourier.prompter import Prompter
from fedkd.teachers.frozen import Teacher
from server.hospital_prompts import examples_of


class Fixed(nn.Module):
    """A generator that gives one log-gain, whatever the latent."""

    latent_dim = 6

    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def forward(self, z):
        return self.gain.expand(len(z), *self.gain.shape)


def prompter(gain=None, **settings):
    if gain is None:
        return Prompter(PromptConfig(generator="amplitude_mix", **settings), None)
    return Prompter(PromptConfig(**settings), Fixed(gain))


def gains(ac=0.0, dc=0.0):
    plane = torch.full((3, 16, 9), float(ac))
    plane[:, 0, 0] = dc
    return plane


@pytest.fixture
def frozen(teacher):
    return Teacher(
        "tiny", teacher, num_features=10, mean=None, std=None, input_size=None, head=None,
        head_kind="none",
    )  # fmt: skip


@pytest.fixture
def pixels():
    """Around 0.4, far from the limits, whose spectra have no empty bin."""
    return 0.4 + 0.02 * torch.randn(5, 3, 16, 16, generator=seeding.generator(0, "pixels"))


def measure(frozen, pixels, *args, **settings):
    rng = seeding.generator(0, "portrait")
    return portrait.portray(prompter(*args, **settings), frozen, pixels, rng)


def test_prompts_that_do_nothing_change_nothing(frozen, pixels):
    seen = measure(frozen, pixels, gains())
    assert seen.quality.prior == pytest.approx(seen.quality.prior_clean, rel=1e-4)
    assert seen.relative_fall == pytest.approx(0, abs=1e-4)
    assert seen.quality.cosine == pytest.approx(1, abs=1e-6)
    assert (seen.quality.magnitude, seen.quality.saturated, seen.num_images) == (0, 0, 5)
    assert seen.changes.abs().max() < 1e-3


def test_one_constant_gain_is_found_in_every_bin_and_is_a_collapse(frozen, pixels):
    seen = measure(frozen, pixels, gains(-0.3, -0.3))
    assert seen.quality.magnitude == pytest.approx(0.3)
    assert seen.changes.shape == (3, 16, 16)
    assert torch.allclose(seen.changes, torch.tensor(-0.3, dtype=torch.float64), atol=1e-3)
    assert (seen.quality.effective_rank, seen.collapsed) == (0, True)


def test_prompts_in_many_directions_are_no_collapse(frozen, pixels):
    rich = prompter(gains())
    rich.generator.forward = lambda z: torch.einsum(
        # latent n, direction d; direction d to channel c, row h, column w
        "nd,dchw->nchw", z, torch.randn(6, 3, 16, 9, generator=seeding.generator(0, "d")) / 100
    )  # fmt: skip
    seen = portrait.portray(rich, frozen, pixels, seeding.generator(0, "portrait"))
    assert 3 < seen.quality.effective_rank <= 6
    assert not seen.collapsed


@pytest.mark.parametrize(("ac", "dc", "share"), [(0, -0.5, 1), (-0.5, 0, 0)])
def test_the_share_of_dc_is_1_for_brightness_alone_and_0_without(frozen, pixels, ac, dc, share):
    seen = measure(frozen, pixels, gains(ac, dc))
    assert seen.dc_share == pytest.approx(share, abs=1e-4)


def test_dc_counts_as_unprompted_where_it_is_kept(frozen, pixels):
    seen = measure(frozen, pixels, gains(0, 1.0), keep_dc=True)
    assert seen.quality.magnitude == 0
    assert seen.changes.abs().max() < 1e-3


def test_pixels_that_a_prompt_drives_beyond_the_limits_are_saturated(frozen, pixels):
    pixels[:, 0], pixels[:, 1] = 1.0, 0.0  # and 0.4: four times these are 4, 0 and 1.6
    seen = measure(frozen, pixels, gains(0, math.log(4)))
    assert seen.quality.saturated == pytest.approx(2 / 3)


def test_amplitude_mix_has_no_log_gain(frozen, pixels):
    seen = measure(frozen, pixels)
    assert seen.log_gains is None
    assert math.isnan(seen.quality.magnitude)
    assert math.isnan(seen.quality.effective_rank)
    assert not seen.collapsed
    assert seen.quality.cosine < 1
    # Amplitudes go around in a ring, so the mean of their logarithms stays.
    assert seen.changes.abs().max() < 1e-3


def test_one_prompt_at_all_strengths_moves_pixels_in_a_line(pixels):
    rng = seeding.generator(0, "portrait")
    none, half, full = portrait.prompted_at(prompter(gains(0.4, -0.2)), pixels, rng, (0, 0.5, 1))
    assert torch.allclose(none, pixels, atol=1e-6)
    assert torch.allclose(half, (none + full) / 2, atol=1e-6)
    assert (full - none).abs().max() > 0.01


def test_a_profile_begins_with_frequency_0():
    plane = torch.ones(8, 8)
    plane[0, 0] = 5
    assert portrait.radial_profile(plane).tolist() == [5, 1, 1, 1, 1]


def test_the_most_different_planes_are_far_from_each_other():
    planes = [torch.full((2, 2), value) for value in (0.0, 0.1, 9.0, -5.0, 0.2)]
    assert portrait.most_different(planes, 1) == [2]
    assert portrait.most_different(planes, 2) == [2, 3]
    assert portrait.most_different(planes, 3) == [2, 3, 4]
    assert portrait.most_different(planes, 5) == [0, 1, 2, 3, 4]


def test_equal_planes_are_chosen_once_each():
    assert portrait.most_different([torch.zeros(2)] * 4, 3) == [0, 1, 2]


def test_the_largest_class_comes_first_then_the_rarest_and_absent_ones_never():
    labels = np.array([0, 0, 3, 0, 1, 1, 1, 1])
    chosen = examples_of(labels, 3, seeding.rng(0, "x"))
    assert labels[chosen].tolist() == [1, 3, 0]
    chosen = examples_of(labels, 5, seeding.rng(0, "x"))
    assert labels[chosen].tolist() == [1, 3, 0, 1, 0]
    assert sorted(examples_of(labels, 99, seeding.rng(0, "x"))) == list(range(8))
