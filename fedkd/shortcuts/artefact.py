"""Frequency shortcuts: band-limited artefacts, and how far a model's priority follows them.

An artefact that comes with a class is a shortcut: a network may read it instead of the lesion. Its
spectrum is known, so that one can ask whether the network's learning priority has moved there.

Source: arXiv 2407.11379 for the question. Artefact, its channels and the alignment are our choice.
"""

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedkd.fourier.rings import radii, ring_means

Band = tuple[float, float]
"""Low <= radius < high, in fractions of the axes' highest frequency; see ``rings.radii``."""
Floats = npt.NDArray[np.float64]


def band_mask(height: int, width: int, band: Band) -> Tensor:
    """Bins of the full plane that lie in a band, bool (height, width), unshifted."""
    radius = radii(height, width)
    return (radius >= band[0]) & (radius < band[1])


def has_bins(height: int, width: int, band: Band) -> bool:
    """Whether a band holds a frequency besides 0 at this size; without one there is no artefact."""
    return bool(band_mask(height, width, band).flatten()[1:].any())


def artefact(shape: tuple[int, int], band: Band, rng: np.random.Generator) -> Floats:
    """White noise of which only a band is left, with a root mean square of 1.

    e = Re IFFT2(M_[low, high) FFT2(white)) / RMS. One plane for all channels: a grey pattern, as a
    sensor or a compression leaves it, that no change of colour hides (our choice). The mask is
    symmetric, so that the inverse transform is real by itself.

    Args:
        shape: Height and width in px.
        band: See :data:`Band`; it holds a frequency besides 0, see :func:`has_bins`.
        rng: Draws height x width normal numbers.

    Returns:
        Float64 (height, width).
    """
    spectrum = np.fft.rfft2(rng.standard_normal(shape)) * _half_mask(*shape, band)
    pattern: Floats = np.fft.irfft2(spectrum, s=shape)
    pattern /= np.sqrt(np.mean(pattern**2))
    return pattern


@cache
def _half_mask(height: int, width: int, band: Band) -> npt.NDArray[np.bool_]:
    mask: npt.NDArray[np.bool_] = band_mask(height, width, band)[:, : width // 2 + 1].numpy()
    return mask


def add_artefact(image: npt.NDArray[Any], strength: float, pattern: Floats) -> None:
    """Make an image clip(x + strength * pattern, 0, 1), in place.

    Args:
        image: (channels, height, width), uint8 for 0..255 or float for 0..1. uint8 is rounded to
            the next of its values: rounding is white and has an RMS of 0.3 / 255, a strength of
            0.03 is 7.65 / 255.
        strength: RMS of what is added where nothing is clipped, in fractions of the range.
        pattern: Float64 (height, width).
    """
    if image.dtype == np.uint8:
        image[:] = np.clip(np.rint(image + 255 * strength * pattern), 0, 255).astype(np.uint8)
    else:
        image[:] = np.clip(image + strength * pattern, 0, 1).astype(image.dtype)


def artefact_profile(height: int, width: int, band: Band) -> Tensor:
    """Share of each ring 1..K in the ring means of the expected power of an artefact, float64 (K,).

    White noise has the same power in every bin, so that it is the share of a ring's bins that lie
    in the band, divided by its sum: comparable with :func:`fedkd.fourier.priority.priority`. All 0
    where the band lies in the corners or holds frequency 0 alone.
    """
    profile = ring_means(band_mask(height, width, band).double())
    total = profile.sum()
    return profile / total if total > 0 else profile


def alignment(shares: Tensor, profile: Tensor) -> Tensor:
    """Cosine between priorities and an artefact's profile, in [0, 1], float64 (...,).

    1: the model looks exactly where the artefact is. 0: nowhere there. A flat priority over K rings
    has sqrt(m / K) with a band of m whole rings: read it against that of a model which has not seen
    the artefact. nan where either is 0 throughout.

    Args:
        shares: Ring shares of models, (..., K).
        profile: What :func:`artefact_profile` gives, (K,).
    """
    norms: Tensor = torch.linalg.vector_norm(shares, dim=-1) * torch.linalg.vector_norm(profile)
    cosine: Tensor = (shares * profile).sum(-1) / norms
    return cosine
