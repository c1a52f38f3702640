"""The generator ``mlp``: a coarse grid of gains from a perceptron."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.fourier.generators.generator import FourierPromptGenerator

NUM_HIDDEN, GRID = 128, (9, 5)


class MLPGenerator(FourierPromptGenerator):
    """Two hidden layers and a grid of 9 x 5 gains per channel, upsampled bilinearly.

    On the prototype it collapsed to one direction (effective rank 1.2): it is here to show what
    the collapse alarm is for. Frequency 0 is in the middle of the grid's first column. It starts
    near the identity; 42,247 parameters for 3 channels and 64 latents.

    Arguments and errors are those of :class:`FourierPromptGenerator`.
    """

    def __init__(
        self, channels: int, height: int, width: int, *, latent_dim: int, max_gain: float
    ) -> None:
        super().__init__(channels, height, width, latent_dim=latent_dim, max_gain=max_gain)
        self.fc1 = nn.Linear(latent_dim, NUM_HIDDEN)
        self.fc2 = nn.Linear(NUM_HIDDEN, NUM_HIDDEN)
        self.fc3 = nn.Linear(NUM_HIDDEN, channels * GRID[0] * GRID[1])
        with torch.no_grad():
            self.fc3.weight *= 0.3
            self.fc3.bias.zero_()

    def unbounded(self, z: Tensor) -> Tensor:
        """The grid, upsampled."""
        x = F.leaky_relu(self.fc1(z), 0.2)
        x = F.leaky_relu(self.fc2(x), 0.2)
        grid = self.fc3(x).unflatten(1, (self.channels, *GRID))
        size = (self.height, self.width // 2 + 1)
        maps = F.interpolate(grid, size=size, mode="bilinear", align_corners=True)
        centred: Tensor = torch.fft.ifftshift(maps, dim=-2)
        return centred
