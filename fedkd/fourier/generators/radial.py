"""The generator ``radial``: a gain for each ring of frequencies and each channel."""

import math

import torch
from torch import Tensor, nn

from fedkd.fourier.generators.generator import FourierPromptGenerator
from fedkd.fourier.rings import radii

NUM_RINGS, NUM_HIDDEN = 12, 128


class RadialGenerator(FourierPromptGenerator):
    """Log-gains that depend on the radial frequency alone.

    A small network gives the log-gain of each channel at 12 radii, evenly spaced from 0 (the mean)
    to sqrt(2) (the corners); in between it is interpolated linearly. Its weights do not depend on
    the size of the images, and prompts have no orientation. 12,964 parameters for 3 channels and 64
    latents. It starts near the identity.

    Arguments and errors are those of :class:`FourierPromptGenerator`.
    """

    interpolation: Tensor

    def __init__(
        self, channels: int, height: int, width: int, *, latent_dim: int, max_gain: float
    ) -> None:
        super().__init__(channels, height, width, latent_dim=latent_dim, max_gain=max_gain)
        self.fc1 = nn.Linear(latent_dim, NUM_HIDDEN)
        self.fc2 = nn.Linear(NUM_HIDDEN, channels * NUM_RINGS)
        with torch.no_grad():
            self.fc2.weight *= 0.3
            self.fc2.bias.zero_()
        # Not persistent: stored weights fit images of any size.
        self.register_buffer("interpolation", _interpolation(height, width), persistent=False)

    def unbounded(self, z: Tensor) -> Tensor:
        """The rings, spread over the plane."""
        rings = self.fc2(nn.functional.leaky_relu(self.fc1(z), 0.2))
        planes: Tensor = rings.view(len(z), self.channels, NUM_RINGS) @ self.interpolation
        return planes.view(len(z), self.channels, self.height, self.width // 2 + 1)


def _interpolation(height: int, width: int) -> Tensor:
    """Weight of each ring in each bin of the half spectrum, float32 (12, bins)."""
    position = radii(height, width)[:, : width // 2 + 1].flatten() / math.sqrt(2) * (NUM_RINGS - 1)
    rings = torch.arange(NUM_RINGS, dtype=position.dtype)
    return (1 - (rings[:, None] - position).abs()).clamp_min(0).float()
