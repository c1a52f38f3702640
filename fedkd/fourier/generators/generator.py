"""What every generator of Fourier prompts is: bounded, symmetric log-gains of random latents."""

import math

import torch
from torch import Tensor, nn

from fedkd.fourier.spectrum import symmetrise

MIN_SIZE = 16


class FourierPromptGenerator(nn.Module):
    """FPG: maps a latent z ~ N(0, I) to a log-gain for each channel and bin of the half spectrum.

    Log-gains are bounded by rho tanh(. / rho) with rho = log(max_gain), and symmetric, so that
    prompted images are real. Subclasses say what is bounded (:meth:`unbounded`). Those with weights
    draw them from torch's global generator: build them inside ``seeding.isolated``.

    Args:
        channels: Of the images.
        height: Of the images in px, >= 16.
        width: Of the images in px, >= 16.
        latent_dim: Length of z.
        max_gain: Bound of the factor on an amplitude, > 1.

    Attributes:
        learning_rate_factor: Multiplies ``explore.learning_rate``.

    Raises:
        ValueError: If an image is smaller than 16 px.

    Source: Elbatel et al., FoPro-KD (see ``fedkd.fourier.prompts``). Differs: the authors'
    generator is not public; all of these are our choice.
    """

    learning_rate_factor = 1.0

    def __init__(
        self, channels: int, height: int, width: int, *, latent_dim: int, max_gain: float
    ) -> None:
        super().__init__()
        if min(height, width) < MIN_SIZE:
            raise ValueError(f"images are {height}x{width} px; Fourier prompts need at least 16x16")
        self.channels, self.height, self.width = channels, height, width
        self.latent_dim = latent_dim
        self.bound = math.log(max_gain)

    def unbounded(self, z: Tensor) -> Tensor:
        """Maps (batch, channels, height, width // 2 + 1) of latents (batch, latent_dim)."""
        raise NotImplementedError

    def forward(self, z: Tensor) -> Tensor:
        """Log-gains (batch, channels, height, width // 2 + 1) of latents (batch, latent_dim)."""
        bounded = self.bound * torch.tanh(self.unbounded(z) / self.bound)
        return symmetrise(bounded, self.width)
