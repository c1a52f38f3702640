"""Fourier prompts: random draws, log-gains applied to the amplitude spectrum, and their diversity.

The authors' generator is not public; what is not in the papers' text is our choice.
Source: Elbatel et al., "FoPro-KD: Fourier Prompted Effective Knowledge Distillation for Long-Tailed
Medical Image Recognition", IEEE TMI 2024 (arXiv 2305.17421).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.fourier.config import PromptForm, PromptPer
from fedkd.fourier.spectrum import amplitude, empty_bins, irfft2, rfft2

ROUNDING = 1e-4  # of pixels in float32, a fortieth of a grey level; transforms are off by 1e-6


class Prompted(NamedTuple):
    """Prompted images.

    Attributes:
        pixels: Clamped to [0, 1], float (batch, channels, height, width).
        out_of_range: Mean distance by which pixels had left [0, 1] before, scalar.
        saturated: Share of pixels that had left it, by more than rounding does, scalar.
    """

    pixels: Tensor
    out_of_range: Tensor
    saturated: Tensor


def draw_latents(
    num_images: int,
    rng: torch.Generator,
    *,
    per: PromptPer,
    latent_dim: int,
    max_strength: float,
    like: Tensor,
) -> tuple[Tensor, Tensor]:
    """Random input of prompts for a batch: latents and strengths.

    Args:
        num_images: Images in the batch.
        rng: CPU generator; drawn from in float32, so that device and dtype change no number.
        per: One latent for each image, or one in all.
        latent_dim: Length of a latent.
        max_strength: Upper end of the strengths.
        like: Device and dtype of the result.

    Returns:
        z ~ N(0, I), (num_images or 1, latent_dim), and l ~ U(0, max_strength), (num_images,).
    """
    z = torch.randn(num_images if per == "image" else 1, latent_dim, generator=rng)
    strength = max_strength * torch.rand(num_images, generator=rng)
    return z.to(like, non_blocking=True), strength.to(like, non_blocking=True)


def apply_prompt(
    pixels: Tensor,
    log_gain: Tensor,
    strength: Tensor,
    *,
    form: PromptForm,
    keep_dc: bool,
    mean_amplitude: Tensor | None = None,
) -> Tensor:
    """Change the amplitude spectrum of images and keep their phase.

    With strength l, log-gain g and amplitude A, the new amplitude is A ((1 - l) + l exp(g)) in
    form ``"gain"`` and (1 - l) A + l M exp(g) in form ``"mix"``, with M the mean amplitude. Bins
    without amplitude have no phase and are left alone: a flat image stays flat.

    Args:
        pixels: Float (batch, channels, height, width) in [0, 1].
        log_gain: Symmetric (see ``spectrum.symmetrise``), float (batch or 1, channels, height,
            width // 2 + 1).
        strength: l in [0, 1], float (batch,). 0 gives the image back.
        form: See above.
        keep_dc: Leave the mean of each image and channel as it is.
        mean_amplitude: M, float (channels, height, width // 2 + 1), or one for each image, float
            (batch, channels, height, width // 2 + 1); needed for ``"mix"``.

    Returns:
        Pixels of the same shape and dtype, which may leave [0, 1].

    Raises:
        ValueError: If ``"mix"`` has no mean amplitude.
    """
    spectra = rfft2(pixels)
    blend = strength.to(spectra.real.dtype).view(-1, 1, 1, 1)
    gain = log_gain.to(spectra.real.dtype).exp()
    if form == "mix":
        if mean_amplitude is None:
            raise ValueError("form 'mix' needs mean_amplitude; see spectrum.mean_amplitude")
        amplitudes = amplitude(spectra)
        empty = empty_bins(amplitudes)
        # Never polar(A, angle): the angle of an empty bin is 0, and all such bins together make
        # a spike in a corner of the image.
        ratio = mean_amplitude.to(amplitudes) / amplitudes.masked_fill(empty, 1.0)
        gain = torch.where(empty, 1.0, ratio * gain)
    factor = 1 + blend * (gain - 1)
    if keep_dc:
        ac = torch.ones_like(factor[0, 0])
        ac[0, 0] = 0
        factor = 1 + ac * (factor - 1)
    height, width = pixels.shape[-2:]
    return irfft2(spectra * factor, (height, width)).to(pixels.dtype)


def prompt(
    pixels: Tensor,
    log_gain: Tensor,
    strength: Tensor,
    *,
    form: PromptForm,
    keep_dc: bool,
    mean_amplitude: Tensor | None = None,
) -> Prompted:
    """Prompted images, clamped to [0, 1], and by how much they had left it.

    Arguments and errors are those of :func:`apply_prompt`. Without the clamp a generator satisfies
    its prior with images that cannot exist.
    """
    raw = apply_prompt(
        pixels, log_gain, strength, form=form, keep_dc=keep_dc, mean_amplitude=mean_amplitude
    )
    distance = F.relu(-raw) + F.relu(raw - 1)
    saturated = (distance.detach() > ROUNDING).to(raw.dtype).mean()
    return Prompted(raw.clamp(0, 1), distance.mean(), saturated)


def diversity_loss(log_gains: Tensor, latents: Tensor) -> Tensor:
    """Scalar 1 / (mean|g_i - g_j| / mean|z_i - z_j| + 0.01), each i paired with the next j.

    Between 0 (prompts far apart) and 100 (all equal, or a single one).

    Args:
        log_gains: g, float (num, channels, height, width // 2 + 1).
        latents: The z they were made of, float (num, latent_dim).

    Source: Mao et al., "Mode Seeking Generative Adversarial Networks", CVPR 2019.
    """
    spread = (log_gains - log_gains.roll(1, 0)).abs().mean()
    distance = (latents - latents.roll(1, 0)).abs().mean()
    return 1 / (spread / distance.clamp_min(1e-8) + 0.01)


def effective_rank(log_gains: Tensor) -> float:
    """Number of directions in which prompts differ: (sum e)^2 / sum e^2, e the variances of PCA.

    A generator that has collapsed to one direction has 1, however far its prompts are apart.

    Args:
        log_gains: One log-gain for each of some latents, float (latents, ...).

    Returns:
        Between 1 and latents - 1; 0 if all are equal.
    """
    log_gains = log_gains.detach().double()
    centred = (log_gains - log_gains.mean(0)).flatten(1)
    gram = centred @ centred.T  # has the non-zero eigenvalues of the covariance, times latents
    total = gram.diagonal().sum()
    return float(total.square() / gram.square().sum()) if total > 0 else 0.0
