"""Augmentation of a batch on its device, drawn from the generator that is given."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedkd.config import Section


class AugmentationConfig(Section):
    """Random changes of the training images; the student and the teacher see the same ones."""

    name: Literal["none", "dihedral", "dihedral_jitter"] = "dihedral_jitter"
    """none; dihedral (one of the 8 flips and quarter turns, as skin has no upright);
    dihedral_jitter (that, and brightness, contrast and saturation)."""
    strength: float = Field(default=0.2, ge=0, le=1)
    """Largest relative change of brightness, contrast and saturation."""


AUGMENTATIONS: dict[str, str] = {
    "none": "images as they are",
    "dihedral": "one of the 8 flips and quarter turns",
    "dihedral_jitter": "dihedral, with brightness, contrast and saturation changed",
}


def augment(pixels: Tensor, config: AugmentationConfig, generator: torch.Generator) -> Tensor:
    """Augmented copy of a batch.

    Args:
        pixels: Float (batch, 3, height, width). Jitter keeps values within [0, 1] and is meant for
            pixels in that range.
        config: What to do.
        generator: CPU generator; the draws do not depend on the device of ``pixels``.
    """
    if config.name == "none":
        return pixels
    pixels = _dihedral(pixels, torch.rand((3, len(pixels)), generator=generator) < 0.5)
    if config.name == "dihedral":
        return pixels
    draws = torch.rand((3, len(pixels), 1, 1, 1), generator=generator, dtype=torch.float64)
    factors = (1 + config.strength * (2 * draws - 1)).to(pixels)
    return _jitter(pixels, *factors)


def _dihedral(pixels: Tensor, coins: Tensor) -> Tensor:
    """Flip rows, flip columns and transpose by three coins (3, batch); square images only turn."""
    rows, columns, transpose = coins.to(pixels.device).view(3, -1, 1, 1, 1)
    pixels = torch.where(rows, pixels.flip(-2), pixels)
    pixels = torch.where(columns, pixels.flip(-1), pixels)
    if pixels.shape[-1] == pixels.shape[-2]:
        pixels = torch.where(transpose, pixels.transpose(-1, -2), pixels)
    return pixels


def _jitter(pixels: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Scale, then stretch about the image's mean, then about each pixel's grey; clamp to [0, 1]."""
    pixels = pixels * brightness
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = mean + (pixels - mean) * contrast
    grey = pixels.mean(1, keepdim=True)
    return (grey + (pixels - grey) * saturation).clamp(0, 1)
