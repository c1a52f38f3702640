"""How precisely a backbone computes: the one place where autocast is switched on."""

from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["full", "bfloat16", "float16"]


def run_backbone(backbone: nn.Module, pixels: Tensor, precision: Precision) -> Tensor:
    """Features of normalised images, in their dtype whatever the precision.

    ``"full"`` computes in the type of the weights. Otherwise the backbone runs under autocast:
    convolutions and products are of rounded numbers, on float32 weights; float64 is left as it is.
    Everything around it stays as it is: normalisation, heads, losses, transforms, optimiser, and
    BatchNorm's statistics, which are float32 within it too. Heads cost next to nothing, and logits
    would lose by being rounded to 8 bits (our choice).

    Args:
        backbone: Maps normalised images to features.
        pixels: Normalised, float (batch, 3, height, width).
        precision: See above.

    Returns:
        Float (batch, num_features).
    """
    if precision == "full":
        features: Tensor = backbone(pixels)
        return features
    # One for each pass, as torch advises: rounded weights are kept until its end.
    with torch.autocast(pixels.device.type, getattr(torch, precision)):
        features = backbone(pixels)
    return features.to(pixels.dtype)
