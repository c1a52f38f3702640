"""What a client's prompts are and do, in numbers: log-gains, changed spectra, what a teacher sees.

All measures are our choice; the papers state none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.fourier.prompter import Prompter
from fedkd.fourier.quality import COLLAPSED_BELOW, Quality, draw_log_gains, measure_prompts
from fedkd.fourier.rings import ring_means
from fedkd.fourier.spectrum import amplitude, empty_bins, full_from_half, rfft2
from fedkd.teachers.frozen import Teacher

NUM_IMAGES = 64
"""Images of a hospital, at most, that the effect is measured on."""


@dataclass(frozen=True)
class Portrait:
    """What :func:`portray` measured. Tensors are float64 on the CPU, planes full and unshifted.

    Attributes:
        log_gains: Of NUM_LATENTS prompts, (latents, channels, height, width), in nats; None where
            prompts are no log-gains (``amplitude_mix``).
        changes: log(A~ / A) at full strength after the clamp, mean over the images, (channels,
            height, width). Bins without amplitude count as unchanged.
        num_images: Images that were measured.
        dc_share: Share of the changed pixels' energy that is a change of an image's channel means,
            in [0, 1]; nan if nothing changes.
        quality: What each round of a run measures too, here on these images.
    """

    log_gains: Tensor | None
    changes: Tensor
    num_images: int
    dc_share: float
    quality: Quality

    @property
    def relative_fall(self) -> float:
        """1 - prior / prior_clean: 1 is a perfect prior, below 0 prompts make it worse."""
        quality = self.quality
        return 1 - quality.prior / quality.prior_clean if quality.prior_clean > 0 else float("nan")

    @property
    def collapsed(self) -> bool:
        """Whether prompts differ in fewer than COLLAPSED_BELOW directions."""
        return self.quality.effective_rank < COLLAPSED_BELOW

    def numbers(self) -> dict[str, float]:
        """The measures by name, for a table."""
        return {
            "num_images": self.num_images,
            **self.quality._asdict(),
            "relative_fall": self.relative_fall,
            "fraction_dc": self.dc_share,
        }


@torch.no_grad()
def prompted_at(
    prompter: Prompter, pixels: Tensor, rng: torch.Generator, strengths: Sequence[float]
) -> Tensor:
    """The same images under the same prompts, one for each image, at several strengths.

    Args:
        prompter: ``amplitude_mix`` takes amplitudes from the next image of the batch.
        pixels: Float (batch, channels, height, width) in [0, 1].
        rng: CPU generator of the latents.
        strengths: Each in [0, 1].

    Returns:
        Clamped pixels (strengths, batch, channels, height, width).
    """
    drawn = prompter.draw(len(pixels), rng, pixels, per="image")
    gains = None if prompter.generator is None else prompter.log_gains(drawn.latents)
    shown = [
        prompter.prompted(pixels, torch.full_like(drawn.strengths, strength), gains).pixels
        for strength in strengths
    ]
    return torch.stack(shown)


@torch.no_grad()
def spectral_change(before: Tensor, after: Tensor) -> Tensor:
    """log(A~ / A) of images, mean over the batch, float64 (channels, height, width) on the CPU.

    Args:
        before: Pixels, float (batch, channels, height, width).
        after: The same images, changed.
    """
    old, new = (amplitude(rfft2(images.double())) for images in (before, after))
    # A flat image has no phase but that of its mean: the ratio of two rounding errors says nothing.
    empty = empty_bins(old) | empty_bins(new)
    ratio = new.masked_fill(empty, 1.0).log() - old.masked_fill(empty, 1.0).log()
    return full_from_half(ratio.mean(0), before.shape[-1]).cpu()


@torch.no_grad()
def portray(prompter: Prompter, teacher: Teacher, pixels: Tensor, rng: torch.Generator) -> Portrait:
    """Measure a client's prompts on some of its images.

    Args:
        prompter: The client's, with its generator on the device of the images.
        teacher: The client's, with reference moments.
        pixels: One batch, float (batch, channels, height, width) in [0, 1]. Only priors of equally
            many images can be compared.
        rng: CPU generator of the latents.
    """
    quality = measure_prompts(teacher, prompter, pixels, rng)
    gains = draw_log_gains(prompter, rng, pixels)
    after = prompted_at(prompter, pixels, rng, (1.0,))[0]
    changed = (after - pixels).double()
    energy, num_pixels = changed.square().sum().item(), changed[0, 0].numel()
    dc_energy = num_pixels * changed.mean((-2, -1)).square().sum().item()
    return Portrait(
        log_gains=None if gains is None else full_from_half(gains, pixels.shape[-1]).double().cpu(),
        changes=spectral_change(pixels, after),
        num_images=len(pixels),
        dc_share=dc_energy / energy if energy > 0 else float("nan"),
        quality=quality,
    )


def radial_profile(planes: Tensor) -> Tensor:
    """Frequency 0 and the means over the rings 1..K, float64 (..., K + 1).

    Args:
        planes: Float (..., height, width), unshifted.
    """
    return torch.cat([planes[..., :1, 0].double(), ring_means(planes)], dim=-1)


def most_different(planes: Sequence[Tensor], num: int) -> list[int]:
    """Indices, ascending, of ``num`` planes that are far from each other.

    The first is the farthest from the mean of all; each next is the one whose nearest chosen plane
    is farthest (root mean square). All, if there are no more than ``num``.

    Args:
        planes: Tensors of one shape, such as mean log-gains.
        num: How many, >= 1.
    """
    if len(planes) <= num:
        return list(range(len(planes)))
    points = torch.stack([plane.flatten().double() for plane in planes])
    chosen = [int((points - points.mean(0)).norm(dim=1).argmax())]
    while len(chosen) < num:
        nearest = torch.cdist(points, points[chosen]).amin(1)
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
    return sorted(chosen)
