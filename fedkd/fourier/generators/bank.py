"""The generator ``bank``: a few free prompts, one of which is drawn."""

import torch
from torch import Tensor, nn

from fedkd.fourier.generators.generator import FourierPromptGenerator


class BankGenerator(FourierPromptGenerator):
    """Maps that are learned as they are; the largest component of z says which one it is.

    Each map is as likely as any other. They are drawn, not mixed, as a mixture of many maps is
    close to their mean (our choice). It starts near the identity.

    Args:
        channels: Of the images.
        height: Of the images in px.
        width: Of the images in px.
        max_gain: Bound of the factor on an amplitude, > 1.
        bank_size: Number of maps, which is the length of z.
    """

    learning_rate_factor = 10.0

    def __init__(
        self, channels: int, height: int, width: int, *, max_gain: float, bank_size: int
    ) -> None:
        super().__init__(channels, height, width, latent_dim=bank_size, max_gain=max_gain)
        self.maps = nn.Parameter(0.1 * torch.randn(bank_size, channels, height, width // 2 + 1))

    def unbounded(self, z: Tensor) -> Tensor:
        """The map that z names."""
        return self.maps[z.argmax(dim=1)]
