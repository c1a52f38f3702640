"""The control ``jitter``: random gains of a given magnitude, which nobody has trained."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.fourier.generators.generator import FourierPromptGenerator
from fedkd.fourier.spectrum import symmetrise


class JitterGenerator(FourierPromptGenerator):
    """Random smooth log-gains; the control for learned prompts.

    White noise on the grid from which ``conv`` starts, upsampled, so that gains are about as smooth
    as those of ``conv``, and made symmetric. Every bin is scaled to one deviation, at which the
    bounded log-gains have the magnitude that is asked for. It has no parameter; its latents are the
    noise (our choice).

    Args:
        channels: Of the images.
        height: Of the images in px.
        width: Of the images in px.
        max_gain: Bound of the factor on an amplitude, > 1.
        magnitude: Mean absolute log-gain in nats, after the bound, as that of learned prompts is
            measured; between 0 and log(max_gain).
    """

    scale: Tensor

    def __init__(
        self, channels: int, height: int, width: int, *, max_gain: float, magnitude: float
    ) -> None:
        self.grid = (height // 8, width // 16 + 1)
        num_values = channels * math.prod(self.grid)
        super().__init__(channels, height, width, latent_dim=num_values, max_gain=max_gain)
        deviation = _deviation_before_bound(magnitude / self.bound) * self.bound
        scale = deviation / _deviation(self.grid, height, width)
        self.register_buffer("scale", scale.float(), persistent=False)

    def unbounded(self, z: Tensor) -> Tensor:
        """The noise, upsampled, made symmetric and scaled."""
        noise = z.view(len(z), self.channels, *self.grid)
        maps = _upsample(noise, (self.height, self.width // 2 + 1))
        return symmetrise(torch.fft.ifftshift(maps, dim=-2), self.width) * self.scale


def _upsample(noise: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(noise, size=size, mode="bicubic", align_corners=False)


def _deviation(grid: tuple[int, int], height: int, width: int) -> Tensor:
    """Standard deviation of each bin, float64 (height, width // 2 + 1), of white noise on the grid.

    The upsampling is separable: the weights of a bin are products of its row's and its column's.
    """
    num_rows, num_columns = grid
    eye = torch.eye(num_rows, dtype=torch.float64).view(num_rows, 1, num_rows, 1)
    rows = torch.fft.ifftshift(_upsample(eye, (height, 1))[:, 0], dim=-2)
    eye = torch.eye(num_columns, dtype=torch.float64).view(num_columns, 1, 1, num_columns)
    columns = _upsample(eye, (1, width // 2 + 1))[:, 0]
    symmetric = symmetrise(rows.expand(-1, -1, width // 2 + 1), width)
    deviation: Tensor = symmetric.norm(dim=0) * columns.norm(dim=0)
    return deviation


def _deviation_before_bound(magnitude: float) -> float:
    """The s for which E|tanh(s n)| of a normal n is the given number in (0, 1), by bisection."""
    n = torch.linspace(0, 8, 4001, dtype=torch.float64)
    density = math.sqrt(2 / math.pi) * (-n.square() / 2).exp()
    low, high = 0.0, 1e6
    for _ in range(80):
        middle = (low + high) / 2
        mean = torch.trapezoid(density * torch.tanh(middle * n), n)
        low, high = (middle, high) if mean < magnitude else (low, middle)
    return high
