"""Learning priority: the power spectrum of a network's input gradient.

How much a network's output moves with each spatial frequency of its input. The abstract of the
paper says what is measured; its equations could not be read: what follows is our choice.

Source: arXiv 2407.11379 (gradient power spectral density).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fedkd.fourier.rings import ring_frequencies, ring_means

Score = Callable[[Tensor], Tensor]
"""Maps pixels (batch, channels, height, width) to one number for each image, (batch,)."""


def input_gradients(score: Score, pixels: Tensor) -> Tensor:
    """Gradient of each image's score with respect to its own pixels, of their shape.

    Args:
        score: Treats images independently: a network in eval mode. Its own weights get no gradient.
        pixels: Float (batch, channels, height, width).
    """
    with torch.enable_grad():
        inputs = pixels.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(score(inputs).sum(), inputs)
    return gradient


def gradient_psd(gradients: Tensor, *, normalised: bool = True) -> Tensor:
    """Power spectral density of each image's gradient, float64 (batch, height, width), unshifted.

    P(u, v) = sum over channels of |FFT2 g|^2 with the orthonormal transform: its sum over the plane
    is |g|^2 (Parseval).

    Args:
        gradients: Float (batch, channels, height, width).
        normalised: Divide each image's by its own sum, so that images count equally however large
            their gradients are; an image without any gradient stays 0.
    """
    spectra = torch.fft.fft2(gradients.double(), norm="ortho")
    power: Tensor = spectra.abs().square().sum(1)
    if not normalised:
        return power
    total = power.sum((-2, -1), keepdim=True)
    shares: Tensor = power / total.masked_fill(total == 0, 1.0)
    return shares


def priority(psd: Tensor) -> Tensor:
    """Share of each ring 1..K in the ring means of a PSD, float64 (..., K); sums to 1.

    Args:
        psd: Float (..., height, width), not 0 everywhere off frequency 0.
    """
    profile = ring_means(psd)
    return profile / profile.sum(-1, keepdim=True)


def centroid(shares: Tensor, height: int, width: int) -> Tensor:
    """Mean frequency of a priority, (...,), between 1 / K and 1 (the axes' highest frequency).

    Args:
        shares: What :func:`priority` gives, (..., K).
        height: Of the images in px.
        width: Of the images in px.
    """
    return (shares * ring_frequencies(height, width).to(shares.device)).sum(-1)


def band_share(shares: Tensor, height: int, width: int, band: tuple[float, float]) -> Tensor:
    """Share of the rings with low <= radius < high, (...,)."""
    frequencies = ring_frequencies(height, width).to(shares.device)
    inside = (frequencies >= band[0]) & (frequencies < band[1])
    return shares[..., inside].sum(-1)
