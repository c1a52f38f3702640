"""The generator ``conv``: a small convolutional decoder."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.fourier.generators.generator import FourierPromptGenerator


class ConvGenerator(FourierPromptGenerator):
    """A small convolutional decoder.

    Its upsampling is nearest but for the last, bilinear one: with bilinear throughout, prompts span
    fewer directions. Frequency 0 is in the middle of its rows, where the plane is smooth, and is
    moved to row 0 at the end. It starts near the identity. GroupNorm, not BatchNorm: a batch of
    latents may be one.

    Arguments and errors are those of :class:`FourierPromptGenerator`.
    """

    def __init__(
        self, channels: int, height: int, width: int, *, latent_dim: int, max_gain: float
    ) -> None:
        super().__init__(channels, height, width, latent_dim=latent_dim, max_gain=max_gain)
        self.grid = (height // 8, width // 16 + 1)
        self.fc = nn.Linear(latent_dim, 32 * math.prod(self.grid))
        self.conv1, self.norm1 = nn.Conv2d(32, 32, 3, padding=1), nn.GroupNorm(4, 32)
        self.conv2, self.norm2 = nn.Conv2d(32, 32, 3, padding=1), nn.GroupNorm(4, 32)
        self.conv3 = nn.Conv2d(32, channels, 3, padding=1)
        with torch.no_grad():
            self.conv3.weight *= 0.3
            assert self.conv3.bias is not None
            self.conv3.bias.zero_()

    def unbounded(self, z: Tensor) -> Tensor:
        """The decoder's maps."""
        x = self.fc(z).unflatten(1, (32, *self.grid))
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = F.leaky_relu(norm(conv(x)), 0.2)
        size = (self.height, self.width // 2 + 1)
        x = self.conv3(F.interpolate(x, size=size, mode="bilinear", align_corners=False))
        centred: Tensor = torch.fft.ifftshift(x, dim=-2)
        return centred
