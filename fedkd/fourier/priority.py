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
Features = Callable[[Tensor], Tensor]
"""Maps them to some numbers for each image, (batch, D)."""


def input_gradients(score: Score, pixels: Tensor) -> Tensor:
    """Gradient of each image's score with respect to its own pixels, of their shape.

    Args:
        score: Treats images independently: a network in eval mode, as BatchNorm in train mode mixes
            them. Its own weights get no gradient.
        pixels: Float (batch, channels, height, width). Those of the data, before a teacher resizes
            them: the gradient goes through the resize, and one that enlarges shows no frequency
            that the image does not have.
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
    return _shares(power)


def feature_psd(
    network: Features,
    pixels: Tensor,
    rng: torch.Generator,
    *,
    num_draws: int = 4,
    normalised: bool = True,
) -> Tensor:
    """The same for a network without a classifier, float64 (batch, height, width).

    The score is v^T f(x) with v ~ N(0, I), drawn anew for each image: the expected PSD of its
    gradient is the sum of the PSDs of all rows of the Jacobian df/dx, of which the mean over the
    draws is an unbiased estimate (Hutchinson's; per image it is rough, over images it averages).

    Args:
        network: Maps pixels to features, float (batch, D), images independently.
        pixels: Float (batch, channels, height, width).
        rng: CPU generator.
        num_draws: Of v for each image, >= 1; a backward pass each.
        normalised: As in :func:`gradient_psd`, of the mean over the draws.
    """
    with torch.enable_grad():
        inputs = pixels.detach().clone().requires_grad_()
        features = network(inputs)
        power = torch.zeros((), dtype=torch.float64, device=pixels.device)
        for _ in range(num_draws):
            drawn = torch.randn(features.shape, generator=rng).to(features)
            (gradient,) = torch.autograd.grad(features, inputs, drawn, retain_graph=True)
            power = power + gradient_psd(gradient, normalised=False) / num_draws
    return _shares(power) if normalised else power


def _shares(power: Tensor) -> Tensor:
    total = power.sum((-2, -1), keepdim=True)
    return power / total.masked_fill(total == 0, 1.0)


def priority(psd: Tensor) -> Tensor:
    """Share of each ring 1..K in the ring means of a PSD, float64 (..., K); sums to 1.

    Args:
        psd: Float (..., height, width), of an image or the mean of several; nan for one that is 0
            on all rings.
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
    """Share of the rings with low <= radius < high, (...,); 0 where none lies in the band.

    Arguments are those of :func:`centroid`; ``band`` is (low, high).
    """
    frequencies = ring_frequencies(height, width).to(shares.device)
    inside = (frequencies >= band[0]) & (frequencies < band[1])
    return shares[..., inside].sum(-1)
