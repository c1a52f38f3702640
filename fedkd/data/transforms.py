"""Operations on a batch of images, each image with its own parameters.

They run on the device of the pixels, in any floating-point dtype and aspect ratio. No image depends
on its neighbours in the batch. Those whose name ends in ``_`` change the pixels in place. Pixels
are float (batch, 3, height, width); parameters are float64 on the CPU, one row per image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def dihedral(pixels: Tensor, coins: Tensor) -> Tensor:
    """Flip the rows, flip the columns, transpose; images that are not square are not transposed.

    Args:
        pixels: Images.
        coins: Which of the three happen to each image, bool (batch, 3).
    """
    if pixels.shape[-1] != pixels.shape[-2]:
        coins = coins & torch.tensor([True, True, False])
    out = torch.empty_like(pixels)
    # At most eight groups: fewer copies than three choices for the whole batch.
    kinds = (coins.long() * torch.tensor([4, 2, 1])).sum(1)
    for kind in sorted(set(kinds.tolist())):
        rows, columns, transpose = kind & 4, kind & 2, kind & 1
        group = _beside((kinds == kind).nonzero().squeeze(1), pixels, torch.int64)
        axes = [axis for axis, flipped in ((-2, rows), (-1, columns)) if flipped]
        view = pixels[group].flip(axes)
        out[group] = view.transpose(-1, -2) if transpose else view
    return out


def affine(pixels: Tensor, matrix: Tensor) -> Tensor:
    """Move pixels, bilinearly; what comes from outside the image is black (0).

    Args:
        pixels: Images.
        matrix: Where each pixel comes from, (batch, 2, 3). ``[[a, b, c], [d, e, f]]``: the pixel
            that is x to the right of the centre and y below it shows what was at ax + by + c and
            dx + ey + f, all in pixels.
    """
    height, width = pixels.shape[-2:]
    # grid_sample counts from the centre, in half widths and half heights.
    halves = torch.tensor([[2 / width], [2 / height]], dtype=matrix.dtype)
    matrix = _beside(matrix * halves, pixels)
    x = torch.arange(width, device=pixels.device, dtype=pixels.dtype) - (width - 1) / 2
    y = torch.arange(height, device=pixels.device, dtype=pixels.dtype) - (height - 1) / 2
    grid = pixels.new_empty((len(pixels), height, width, 2))
    for axis in range(2):
        by_x, by_y, shift = matrix[:, axis].T.unsqueeze(-1)
        torch.add((by_x * x)[:, None, :], (by_y * y + shift)[:, :, None], out=grid[..., axis])
    return F.grid_sample(pixels, grid, padding_mode="zeros", align_corners=False)


def gaussian_blur(pixels: Tensor, deviations: Tensor, radii: tuple[int, int]) -> Tensor:
    """Gaussian blur that reads ``2 * radius + 1`` pixels each way; edges are mirrored.

    Args:
        pixels: Images.
        deviations: Standard deviations to the right and down in pixels, > 0, (batch, 2).
        radii: To the right and down; each smaller than the image.
    """
    (to_right, down), (height, width) = radii, pixels.shape[-2:]
    padded = F.pad(pixels, (to_right, to_right, down, down), mode="reflect")
    # Sums of shifted images: one after the other in each direction, always in the same order.
    for axis, radius, length in ((-2, down, height), (-1, to_right, width)):
        offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
        taps = torch.exp(-((offsets / deviations[:, 1 if axis == -2 else 0, None]) ** 2) / 2)
        taps = _beside(taps / taps.sum(1, keepdim=True), pixels)
        blurred = padded.narrow(axis, 0, length) * _each(taps[:, 0])
        for start in range(1, 2 * radius + 1):
            blurred.addcmul_(padded.narrow(axis, start, length), _each(taps[:, start]))
        padded = blurred
    return padded


def brightness_(pixels: Tensor, factor: Tensor) -> Tensor:
    """Multiply by the factor (batch,), within [0, 1]; as torchvision."""
    return pixels.mul_(_each(_beside(factor, pixels))).clamp_(0, 1)


def contrast_(pixels: Tensor, factor: Tensor) -> Tensor:
    """Stretch by the factor (batch,) about the image's mean grey, within [0, 1]; as torchvision."""
    mean = _mean(_grey(pixels, (0.2989, 0.587, 0.114)))
    factor = _beside(factor, pixels)
    return pixels.mul_(_each(factor)).add_(_each((1 - factor) * mean)).clamp_(0, 1)


def saturation_(pixels: Tensor, factor: Tensor) -> Tensor:
    """Stretch by the factor (batch,) about each pixel's grey, within [0, 1]; as torchvision."""
    grey = _grey(pixels, (0.2989, 0.587, 0.114)).unsqueeze(1)
    factor = _each(_beside(factor, pixels))
    return pixels.mul_(factor).add_(grey.mul_(1 - factor)).clamp_(0, 1)


def hue_(pixels: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue, keeping value and saturation of HSV; as torchvision.

    Args:
        pixels: Images within [0, 1].
        turns: Part of the colour circle, (batch,).
    """
    red, green, blue = pixels.unbind(1)
    high, low = pixels.amax(1), pixels.amin(1)
    chroma = high - low
    # In sixths of the circle, by the largest channel. Grey has no hue: 0 / tiny is 0. Weights of 0
    # and 1 instead of torch.where, which is slow on a CPU.
    scale = chroma.clamp(min=torch.finfo(chroma.dtype).tiny).reciprocal_()
    hue = (red - green).mul_(scale).add_(4)
    for channel, plus, minus, start in ((green, blue, red, 2), (red, green, blue, 0)):
        other = (plus - minus).mul_(scale).add_(start)
        hue.addcmul_(other.sub_(hue), (high == channel).to(hue))
    hue.add_(_beside(_each(6 * turns).squeeze(1), pixels))
    hue.sub_((hue / 6).floor_(), alpha=6)
    shares = (
        (hue - 3).abs_().sub_(1),
        (hue - 2).abs_().neg_().add_(2),
        (hue - 4).abs_().neg_().add_(2),
    )
    for channel, share in zip((red, green, blue), shares, strict=True):
        torch.addcmul(low, share.clamp_(0, 1), chroma, out=channel)
    return pixels


def jitter_(pixels: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Scale, stretch about the image's mean, then about each pixel's grey; clamp to [0, 1] once.

    Grey is the mean of the channels. Other than in torchvision, values may leave [0, 1] on the way.

    Args:
        pixels: Images.
        brightness: Factors (batch,); so are the others.
        contrast: About the mean.
        saturation: About the grey.
    """
    # All three are linear: gain * (saturation * pixel + (1 - saturation) * grey) + shift.
    grey = _grey(pixels, (1 / 3, 1 / 3, 1 / 3))
    shift = _beside(brightness * (1 - contrast), pixels) * _mean(grey)
    gain = brightness * contrast
    grey.mul_(_beside(_each(gain * (1 - saturation)).squeeze(1), pixels))
    grey.add_(_each(shift).squeeze(1))
    pixels.mul_(_each(_beside(gain * saturation, pixels))).add_(grey.unsqueeze(1))
    return pixels.clamp_(0, 1)


def _beside(values: Tensor, pixels: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Parameters on the device of the pixels and, unless another is given, in their dtype.

    So few numbers go into the GPU's queue: the program need not wait until all before is done.
    """
    return values.to(pixels.device, dtype or pixels.dtype, non_blocking=True)


def _each(values: Tensor) -> Tensor:
    """One value per image, shaped to meet pixels."""
    return values.view(-1, 1, 1, 1)


def _grey(pixels: Tensor, weights: tuple[float, float, float]) -> Tensor:
    """Weighted sum of the channels, (batch, height, width)."""
    red, green, blue = pixels.unbind(1)
    return (red * weights[0]).add_(green, alpha=weights[1]).add_(blue, alpha=weights[2])


def _mean(plane: Tensor) -> Tensor:
    """Mean of each image's plane, (batch,).

    Summed in float64: how torch divides a sum depends on the batch's size, and rounding to float32
    afterwards hides it.
    """
    return plane.mean((1, 2), dtype=torch.float64).to(plane)
