"""What prompts are like: what they gain with the teacher, what they cost, whether they collapsed.

Which measures and how they are taken is our choice.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.fourier.prompter import Prompter
from fedkd.fourier.prompts import effective_rank
from fedkd.teachers.frozen import Teacher
from fedkd.teachers.moments import moment_divergence

NUM_LATENTS = 32
"""Prompts that magnitude and rank are taken over."""
COLLAPSED_BELOW = 3.0
"""Effective rank below which prompts are all about the same."""


class Quality(NamedTuple):
    """Of prompts at full strength, one for each image.

    Attributes:
        prior: L_prior (kl) of the prompted images in nats; only values of equally many images can
            be compared.
        prior_clean: Of the same images without prompts.
        magnitude: Mean absolute log-gain of 32 latents in nats; nan for ``amplitude_mix``, as is
            the rank.
        effective_rank: Number of directions in which the log-gains of 32 latents differ, up to 31;
            see :func:`fedkd.fourier.prompts.effective_rank`.
        feature_diversity: Mean 1 - cos of the teacher's features of one image under two prompts,
            0 to 2. The spread of log-gains tells less: a collapsed generator's may be large.
        cosine: Mean cosine between the teacher's features with and without a prompt: how much of
            what it saw is left.
        saturated: Share of pixels that had left [0, 1] before the clamp.
    """

    prior: float
    prior_clean: float
    magnitude: float
    effective_rank: float
    feature_diversity: float
    cosine: float
    saturated: float


@torch.no_grad()
def measure_prompts(
    teacher: Teacher, prompter: Prompter, pixels: Tensor, rng: torch.Generator
) -> Quality:
    """Measure on one batch, which costs three passes of the teacher.

    Args:
        teacher: Frozen, with reference moments.
        prompter: Its prompts are drawn at strength 1, one for each image.
        pixels: One batch, float (batch, channels, height, width) in [0, 1]. Of a batch of one or
            two, ``amplitude_mix`` has no second prompt, and its diversity is 0.
        rng: CPU generator of the latents.

    Raises:
        TeacherError: If the teacher has no reference moments.
    """
    prompted = prompter.full(pixels, rng)
    clean, seen = (teacher.observe(images) for images in (pixels, prompted.pixels))
    # In reverse order, as amplitude_mix takes the amplitudes of the next image.
    again = teacher.features(prompter.full(pixels.flip(0), rng).pixels).flip(0)
    magnitude = rank = math.nan
    if (gains := draw_log_gains(prompter, rng, pixels)) is not None:
        magnitude, rank = gains.abs().mean().item(), effective_rank(gains)
    reference = teacher.reference
    return Quality(
        prior=moment_divergence(seen.moments, reference).item(),
        prior_clean=moment_divergence(clean.moments, reference).item(),
        magnitude=magnitude,
        effective_rank=rank,
        feature_diversity=1 - _cosine(seen.features, again),
        cosine=_cosine(seen.features, clean.features),
        saturated=prompted.saturated.item(),
    )


@torch.no_grad()
def draw_log_gains(prompter: Prompter, rng: torch.Generator, like: Tensor) -> Tensor | None:
    """Log-gains of NUM_LATENTS prompts, (latents, channels, height, width // 2 + 1), as they act.

    With ``keep_dc`` that of frequency 0 is 0. None where prompts are no log-gains.

    Args:
        prompter: A client's.
        rng: CPU generator of the latents.
        like: Device and dtype of the generator.
    """
    if prompter.generator is None:
        return None
    drawn = prompter.draw(NUM_LATENTS, rng, like, per="image")
    gains = prompter.log_gains(drawn.latents)
    if prompter.config.keep_dc:
        gains[..., 0, 0] = 0
    return gains


def _cosine(features: Tensor, others: Tensor) -> float:
    return F.cosine_similarity(features, others, dim=1).mean().item()
