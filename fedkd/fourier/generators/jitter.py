"""The control ``jitter``: random gains of a given magnitude, which nobody has trained."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.fourier.generators.generator import FourierPromptGenerator


class JitterGenerator(FourierPromptGenerator):
    """Random smooth log-gains; the control for learned prompts.

    White noise on the grid from which ``conv`` starts, upsampled, so that gains are about as
    smooth as those of ``conv``, and scaled so that before the bound their mean absolute value is
    ``magnitude``. It has no parameter; its latents are the noise (our choice).

    Args:
        channels: Of the images.
        height: Of the images in px.
        width: Of the images in px.
        max_gain: Bound of the factor on an amplitude, > 1.
        magnitude: Mean absolute log-gain in nats, before the bound; > 0. Set it to that of the
            prompts that this is the control of.
    """

    def __init__(
        self, channels: int, height: int, width: int, *, max_gain: float, magnitude: float
    ) -> None:
        self.grid = (height // 8, width // 16 + 1)
        num_values = channels * math.prod(self.grid)
        super().__init__(channels, height, width, latent_dim=num_values, max_gain=max_gain)
        self.magnitude = magnitude

    def unbounded(self, z: Tensor) -> Tensor:
        """The noise, upsampled and scaled."""
        size = (self.height, self.width // 2 + 1)
        noise = z.view(len(z), self.channels, *self.grid)
        maps = F.interpolate(noise, size=size, mode="bicubic", align_corners=False)
        # E|x| of the maps, whose values are normal: sqrt(2/pi) sd, with the sd of the upsampling.
        scale = self._deviation(z) * math.sqrt(2 / math.pi)
        centred: Tensor = torch.fft.ifftshift(maps * (self.magnitude / scale), dim=-2)
        return centred

    def _deviation(self, like: Tensor) -> Tensor:
        """Mean standard deviation over the plane of upsampled white noise."""
        size = (self.height, self.width // 2 + 1)
        cells = torch.eye(math.prod(self.grid), device=like.device, dtype=like.dtype)
        spread = F.interpolate(
            cells.view(-1, 1, *self.grid), size=size, mode="bicubic", align_corners=False
        )
        return spread.square().sum(0).sqrt().mean()
