"""BatchNorm statistics of a teacher that has been trained."""

import torch
from torch import Tensor, nn

from fedkd import seeding
from fedkd.data.pixels import Pixels
from fedkd.models.batchnorm import measured_anew
from fedkd.pretraining.config import PretrainConfig
from fedkd.pretraining.images import normalize, pixels_of
from fedkd.pretraining.simclr import deepest_features


def at_size(pixels: Tensor, size: int) -> Tensor:
    """Pixels (batch, 3, height, width) resized to a square, if they are not that already."""
    if pixels.shape[-2:] == (size, size):
        return pixels
    return nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)


@torch.no_grad()
def measure_statistics(
    backbone: nn.Module, head: nn.Module, images: Pixels | Tensor, config: PretrainConfig
) -> None:
    """Replace BatchNorm's running statistics by plain averages over whole images, in place.

    The running averages of training lag behind the weights and describe crops at ``view_size``; the
    Fourier prompts compare with them at ``reading_size``, so there they are measured.
    """
    device = next(backbone.parameters()).device
    with measured_anew(backbone, head):
        for number in range(config.statistics_batches):
            rows = seeding.rng(config.seed, "pretrain-statistics", number).integers(
                len(images), size=min(config.batch_size, 128)
            )
            pixels = at_size(pixels_of(images, rows, device), config.reading_size)
            head(deepest_features(backbone, normalize(pixels), bfloat16=False))
