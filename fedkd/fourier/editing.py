"""Source editing: images whose amplitudes are changed by frequency alone, before a pre-training.

x' = Re IFFT2(T(r) FFT2(x)), with a real T >= 0 of the radius r: phases are kept, and T(0) = 1 keeps
each channel's mean. The transform is periodic: what T spreads over one edge comes in at the other.

Source: arXiv 2407.11379 (source data compensation and augmentation in the frequency domain), of
which only the abstract could be read: these two forms of T are our choice.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedkd.fourier.rings import radii, ring_frequencies, ring_means

MAX_FACTOR = 8.0
"""PSD matching changes no amplitude by more than this factor, up or down."""


def notch(height: int, width: int, *, centre: float, spread: float, depth: float) -> Tensor:
    """T = 1 - depth exp(-(r - centre)^2 / (2 spread^2)), which takes out a band.

    Args:
        height: Of the images in px.
        width: Of the images in px.
        centre: Radius of the band; 1 is the highest frequency along an axis.
        spread: Standard deviation of the band, > 0.
        depth: Share of the amplitude that is taken away at the centre, in [0, 1].

    Returns:
        Of each bin of the half plane, float64 (height, width // 2 + 1).
    """
    radius = _half_radii(height, width)
    transfer = 1 - depth * torch.exp(-((radius - centre) ** 2) / (2 * spread**2))
    transfer[0, 0] = 1
    return transfer


def matching(height: int, width: int, source: Tensor, target: Tensor) -> Tensor:
    """T = sqrt(target PSD / source PSD) within [1/8, 8], linear in r between rings.

    Corners beyond the last ring have its factor. Rings where both are empty have 1.

    Args:
        height: Of the source images in px.
        width: Of the source images in px.
        source: Their :func:`radial_psd`, float (K,).
        target: That of the target images, which may have another size, float (any,): radii are
            matched, that is, cycles per px.

    Returns:
        Of each bin of the half plane, float64 (height, width // 2 + 1).
    """
    ratio = (at_radii(target, len(source)) / source.double()).nan_to_num(1.0, posinf=np.inf)
    factors = ratio.sqrt().clamp(1 / MAX_FACTOR, MAX_FACTOR)
    radius = _half_radii(height, width)
    known = ring_frequencies(height, width)
    transfer = torch.from_numpy(np.interp(radius.numpy(), known.numpy(), factors.numpy()))
    transfer[0, 0] = 1
    return transfer


def radial_psd(batches: Iterable[npt.NDArray[np.uint8]]) -> Tensor:
    """Mean power of the rings 1..K over images and channels, float64 (K,).

    Powers are |FFT2|^2 with the orthonormal transform, of pixels in [0, 1]: white noise has its
    variance everywhere, whatever the size.

    Args:
        batches: At least one image in all, uint8 (any, channels, height, width) of one size.
    """
    total, num_planes = torch.zeros(()), 0
    for batch in batches:
        spectra = torch.fft.fft2(torch.from_numpy(batch).double() / 255, norm="ortho")
        total = total + spectra.abs().square().sum((0, 1))
        num_planes += batch.shape[0] * batch.shape[1]
    return ring_means(total / num_planes)


def at_radii(psd: Tensor, num: int) -> Tensor:
    """A radial PSD at the radii of ``num`` rings, float64 (num,), linear in between."""
    known, wanted = (np.arange(1, n + 1) / n for n in (len(psd), num))
    return torch.from_numpy(np.interp(wanted, known, psd.double().numpy()))


def psd_distance(first: Tensor, second: Tensor) -> float:
    """KL divergence in nats of two radial PSDs, each as shares of its rings: 0 if they are alike.

    Shares, so that contrast does not count. Of two sizes, the second is read at the radii of the
    first.

    Args:
        first: Float (K,), > 0.
        second: Float (any,), > 0.
    """
    second = at_radii(second, len(first))
    shares = [psd / psd.sum() for psd in (first.double(), second)]
    return float(torch.special.xlogy(shares[0], shares[0] / shares[1]).sum())


def edit(pixels: Tensor, transfer: Tensor) -> Tensor:
    """Images with the amplitude of each bin multiplied; they may leave their range.

    Args:
        pixels: Float (..., height, width).
        transfer: Real (height, width // 2 + 1), radial.

    Returns:
        Of the same shape and dtype.
    """
    spectra = torch.fft.rfft2(pixels) * transfer.to(pixels.dtype)
    edited: Tensor = torch.fft.irfft2(spectra, s=pixels.shape[-2:])
    return edited


def edit_bytes(
    images: npt.NDArray[np.uint8], transfer: Tensor
) -> tuple[npt.NDArray[np.uint8], float]:
    """Edited images, rounded and clipped to 0..255, and the share of values that were clipped.

    Rounding adds white noise of power 1 / (12 * 255^2), below which no band can be emptied, and
    clipping puts some power back everywhere.

    Args:
        images: uint8 (num_images, channels, height, width).
        transfer: Real (height, width // 2 + 1), radial.
    """
    raw = edit(torch.from_numpy(images).double(), transfer).round()
    clipped = raw.clamp(0, 255)
    share = (raw != clipped).double().mean()
    return clipped.byte().numpy(), float(share)


def _half_radii(height: int, width: int) -> Tensor:
    return radii(height, width)[:, : width // 2 + 1].clone()
