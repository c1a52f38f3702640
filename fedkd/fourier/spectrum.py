"""Half spectra of real images, in float32 at least, and gains that keep the image real."""

from collections.abc import Iterable

import torch
from torch import Tensor

# In units of the dtype's epsilon and of a channel's largest amplitude: a bin below it holds only
# rounding errors. A flat image, whose bins but one are empty, reaches 0.25.
EMPTY_BIN = 4


def rfft2(images: Tensor) -> Tensor:
    """Half spectrum of real images.

    Half types are widened, as their FFT is missing on CPUs and restricted on GPUs; autocast is
    off inside for the same reason.

    Args:
        images: Float (..., height, width).

    Returns:
        Complex (..., height, width // 2 + 1), complex128 for float64 images, else complex64.
    """
    with torch.autocast(images.device.type, enabled=False):
        wide = images.to(torch.promote_types(images.dtype, torch.float32))
        spectrum: Tensor = torch.fft.rfft2(wide)
        return spectrum


def irfft2(half: Tensor, size: tuple[int, int]) -> Tensor:
    """Real images (..., height, width) of a half spectrum.

    Args:
        half: Complex (..., height, width // 2 + 1).
        size: (height, width); needed because a half spectrum fits an even and an odd width.
    """
    with torch.autocast(half.device.type, enabled=False):
        images: Tensor = torch.fft.irfft2(half, s=size)
        return images


def amplitude(half: Tensor) -> Tensor:
    """Amplitude spectrum, real, of the half spectrum's shape; its gradient at 0 is 0."""
    return half.abs()


def symmetrise(log_gain: Tensor, width: int) -> Tensor:
    """The part of a real half-spectrum map that acts on real images.

    The columns v = 0 and, for an even width, v = width/2 hold both a bin and its mirror image
    (-u mod height); the two are set to their mean. Without it the inverse transform would do the
    same to the linear gain in silence, and amplitudes would not be the requested ones.

    Args:
        log_gain: Real (..., height, width // 2 + 1).
        width: Of the image.
    """
    own_mirrors = [0, width // 2] if width % 2 == 0 else [0]
    columns = log_gain[..., own_mirrors]
    mirrored = columns.flip(-2).roll(1, dims=-2)
    symmetric = log_gain.clone()
    symmetric[..., own_mirrors] = 0.5 * (columns + mirrored)
    return symmetric


def full_from_half(half: Tensor, width: int) -> Tensor:
    """The full plane (..., height, width) of a half spectrum or half-spectrum map.

    F[u, v] = conj(F[-u mod height, width - v]) for v > width/2. Of ``exp(log_gain)`` it gives the
    prompt in the form (channels, height, width).

    Args:
        half: Real or complex (..., height, width // 2 + 1).
        width: Of the image.
    """
    num_mirrored = (width - 1) // 2
    mirrored = half[..., 1 : num_mirrored + 1].flip(-2, -1).roll(1, dims=-2)
    return torch.cat([half, mirrored.conj()], dim=-1)


def empty_bins(amplitudes: Tensor) -> Tensor:
    """Bins (bool) whose phase is rounding error, by each channel's largest amplitude."""
    return amplitudes <= _empty_below(amplitudes)


def _empty_below(amplitudes: Tensor) -> Tensor:
    return EMPTY_BIN * torch.finfo(amplitudes.dtype).eps * amplitudes.amax((-2, -1), keepdim=True)


def mean_amplitude(batches: Iterable[Tensor]) -> Tensor:
    """Geometric mean amplitude spectrum of a data set, float64 (channels, height, width // 2 + 1).

    Empty bins count with the smallest amplitude that has a phase, an all-black image not at all:
    one flat picture must not drag the mean to 0.

    Args:
        batches: Pixels in batches, float (any, channels, height, width) of one size.

    Raises:
        ValueError: If there is no image that is not black.
    """
    total: Tensor | None = None
    num_images: Tensor | int = 0
    for batch in batches:
        _, _, _, _ = batch.shape  # a single tensor of images would be taken apart into channels
        values = amplitude(rfft2(batch))
        floor = _empty_below(values)
        lit = floor > 0
        logs = torch.maximum(values, floor).double().log().where(lit, 0.0).sum(0)
        total = logs if total is None else total + logs
        num_images = num_images + lit.sum(0)
    if total is None or not bool((torch.as_tensor(num_images) > 0).all()):
        raise ValueError("the mean amplitude needs an image that is not black in each channel")
    return (total / num_images).exp()
