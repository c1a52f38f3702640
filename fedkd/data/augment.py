"""Augmentation of training images: named presets, and the random numbers that each image gets."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from fedkd.config import Section
from fedkd.data import transforms
from fedkd.data.images import Integers

Draws = npt.NDArray[np.float64]
"""Uniform numbers in [0, 1), a row per image; see :func:`draw`."""


class AugmentationConfig(Section):
    """Random changes of the training images; the student and the teacher see the same ones."""

    name: Literal["none", "dihedral", "dihedral_jitter", "fedmas_isic", "fedmas_skin"] = (
        "dihedral_jitter"
    )
    """none; dihedral (one of the 8 flips and quarter turns, as skin has no upright);
    dihedral_jitter (that, and brightness, contrast and saturation); fedmas_isic (Fed-MAS on
    Fed-ISIC2019: flips, blur, +-10 degrees); fedmas_skin (Fed-MAS on ISIC-LT: flips, one of scale,
    shift and +-45 degrees, colours). The size of the images is data.size."""
    strength: float = Field(default=0.2, ge=0, le=1)
    """Largest relative change of brightness, contrast and saturation by dihedral_jitter; the other
    augmentations ignore it."""


AUGMENTATIONS: dict[str, str] = {
    "none": "images as they are",
    "dihedral": "one of the 8 flips and quarter turns",
    "dihedral_jitter": "dihedral, with brightness, contrast and saturation changed",
    "fedmas_isic": "Fed-MAS on Fed-ISIC2019: flips, Gaussian blur, up to 10 degrees",
    "fedmas_skin": "Fed-MAS on ISIC-LT: one of scale, shift and up to 45 degrees; colours, flips",
}

DIHEDRAL = ("dihedral", "dihedral_jitter")
"""Those that show an image in one of finitely many views, whatever else they do to it."""

CLAMPS = ("dihedral_jitter", "fedmas_skin")
"""Those that change colours, and clamp them to [0, 1]."""

NUM_DRAWS = 10
# Columns of the draws. A preset leaves those alone that it has no use for, so that another preset
# makes the same flips.
_FLIP_ROWS, _FLIP_COLUMNS, _TRANSPOSE, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(7)
_CHOICE, _AMOUNT, _BLUR = range(7, NUM_DRAWS)
_COINS = [_FLIP_ROWS, _FLIP_COLUMNS, _TRANSPOSE]

# Values of a batch that are worked on at once on a CPU: they stay in its cache.
_VALUES_AT_ONCE = 2**19


def draw(order: Integers, rng: np.random.Generator) -> Draws:
    """Random numbers for every use of an image in one epoch.

    They belong to the image, not to its place: another order of the same images, another batch
    size or ``drop_last`` give each image the same numbers. An image that is used several times
    gets others each time.

    Args:
        order: Positions of images in the order of their use, int64 (n,).
        rng: Of this client, round and epoch.

    Returns:
        Row i is for the image at ``order[i]``, float64 (n, NUM_DRAWS).
    """
    table = rng.random((len(order), NUM_DRAWS))
    draws = np.empty_like(table)
    draws[np.argsort(order, kind="stable")] = table
    return draws


def dihedral_views(draws: Draws, square: bool) -> Integers:
    """Number of the flip and turn that the augmentations in ``DIHEDRAL`` give each image.

    Args:
        draws: From :func:`draw`, the rows of these images.
        square: Whether the images are; others do not turn.

    Returns:
        int64 (batch,), below 8, or 4 if not square; 0 is the image as it is.
    """
    coins = draws[:, _COINS] < 0.5
    weights = np.array([4, 2, 1] if square else [2, 1, 0], np.int64)
    views: Integers = (coins * weights).sum(1)
    return views


def dihedral_view(pixels: Tensor, number: int) -> Tensor:
    """All images of a batch (batch, 3, height, width) in the view of one number."""
    if pixels.shape[-1] != pixels.shape[-2]:
        number *= 2
    coins = torch.tensor([[bool(number & bit) for bit in (4, 2, 1)]])
    return transforms.dihedral(pixels, coins.expand(len(pixels), 3))


def augment_(pixels: Tensor, draws: Draws, config: AugmentationConfig) -> Tensor:
    """Augment a batch in place, on its device.

    An image's result depends on its pixels and draws alone, on a CPU to the bit. In place, as the
    pages of a second batch cost a CPU as much time as the augmentation. A CPU uses one thread.

    Args:
        pixels: Float (batch, 3, height, width), overwritten. Changes of colour need [0, 1] and
            clamp to it (``CLAMPS``), and what turns and shifts bring in from outside the image is
            black (0).
        draws: From :func:`draw`, the rows of these images.
        config: What to do.

    Returns:
        ``pixels``.
    """
    if config.name == "none":
        return pixels
    preset, numbers = _PRESETS[config.name], torch.from_numpy(draws)
    on_cpu, num_threads = pixels.device.type == "cpu", torch.get_num_threads()
    at_once = max(1, _VALUES_AT_ONCE // pixels[0].numel()) if on_cpu else len(pixels)
    try:
        # torch's threads wait for each other after every operation. On so few images that takes as
        # long as they save, and ten times as long where another program uses one of the cores.
        if on_cpu:
            torch.set_num_threads(1)
        for start in range(0, len(pixels), at_once):
            part = slice(start, start + at_once)
            pixels[part] = preset(pixels[part], numbers[part], config.strength)
    finally:
        if on_cpu:
            torch.set_num_threads(num_threads)
    return pixels


def _dihedral(pixels: Tensor, draws: Tensor, strength: float) -> Tensor:
    """One of the 8 flips and quarter turns, our choice; images that are not square only flip."""
    return transforms.dihedral(pixels, draws[:, _COINS] < 0.5)


def _dihedral_jitter(pixels: Tensor, draws: Tensor, strength: float) -> Tensor:
    """Dihedral, then factors of 1 +- strength; our choice."""
    factors = _between(1 - strength, 1 + strength, draws[:, _BRIGHTNESS : _SATURATION + 1])
    return transforms.jitter_(_dihedral(pixels, draws, strength), *factors.T)


def _fedmas_isic(pixels: Tensor, draws: Tensor, strength: float) -> Tensor:
    """Each flip with probability 0.5, Gaussian blur, rotation by up to 10 degrees.

    Source: Fed-MAS code (commit b656e7d), ``_data_transforms_flamby_isic``: torchvision's flips,
    ``GaussianBlur((5, 9), (0.1, 5))``, ``RandomRotation((-10, 10))``, ``Resize(224)``. Differs: it
    blurs and rotates the file's picture before it is resized, with the nearest pixel; here the
    resized picture is rotated, bilinearly, and blurred as much as that blur would be seen in it
    had the file 600 x 450 pixels, as in HAM10000 (our choice; the larger files of ISIC 2019 are
    blurred less there).
    """
    sides = torch.tensor([pixels.shape[-1], pixels.shape[-2]], dtype=torch.float64)
    sigma = torch.cat((_between(0.1, 5, draws[:, _BLUR]), torch.tensor([5.0]).double()))
    deviations = torch.stack([_deviation(sigma, radius) for radius in (2, 4)], 1)
    deviations *= sides / torch.tensor([600, 450])
    # The last row is the largest blur: it says how many pixels are read for every image. A side of
    # one pixel has none to mirror.
    to_right, down = torch.minimum((3 * deviations[-1]).ceil(), sides - 1).int().tolist()
    blurred = transforms.gaussian_blur(pixels, deviations[:-1], (to_right, down))
    return transforms.affine(
        blurred, _flipped(_rotation(_between(-10, 10, draws[:, _AMOUNT])), draws)
    )


def _fedmas_skin(pixels: Tensor, draws: Tensor, strength: float) -> Tensor:
    """One of scale, shift and rotation; colours; each flip with probability 0.5.

    Scale 0.95 to 1.2, or a shift to the side by up to 5 % of the width in whole pixels, or a
    rotation by up to 45 degrees; brightness, contrast and saturation by up to 25 %, hue by up to
    0.01 turns.

    Source: Fed-MAS code (commit b656e7d), ``_data_transforms_skin``; FoPro-KD's repository has none
    of its own and refers to that code. Differs: bilinear, where it takes the nearest pixel; colours
    change in the order above, where it draws an order for each image (our choice).
    """
    choice, amount = draws[:, _CHOICE], draws[:, _AMOUNT]
    matrix = _rotation(torch.where(choice < 2 / 3, 0, _between(-45, 45, amount)))
    # Where a pixel comes from: the inverse of what happens to the image.
    matrix[:, :, :2] /= torch.where(choice < 1 / 3, _between(0.95, 1.2, amount), 1).view(-1, 1, 1)
    limit = 0.05 * pixels.shape[-1]
    shifts = (choice >= 1 / 3) & (choice < 2 / 3)
    matrix[:, 0, 2] = torch.where(shifts, -_between(-limit, limit, amount).round(), 0)
    pixels = transforms.affine(pixels, _flipped(matrix, draws))
    transforms.brightness_(pixels, _between(0.75, 1.25, draws[:, _BRIGHTNESS]))
    transforms.contrast_(pixels, _between(0.75, 1.25, draws[:, _CONTRAST]))
    transforms.saturation_(pixels, _between(0.75, 1.25, draws[:, _SATURATION]))
    return transforms.hue_(pixels, _between(-0.01, 0.01, draws[:, _HUE]))


_PRESETS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "dihedral": _dihedral,
    "dihedral_jitter": _dihedral_jitter,
    "fedmas_isic": _fedmas_isic,
    "fedmas_skin": _fedmas_skin,
}


def _between(low: float, high: float, draws: Tensor) -> Tensor:
    return low + (high - low) * draws


def _rotation(degrees: Tensor) -> Tensor:
    """Matrices (batch, 2, 3) of :func:`fedkd.data.transforms.affine`, counter-clockwise."""
    angle = torch.deg2rad(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)


def _flipped(matrix: Tensor, draws: Tensor) -> Tensor:
    """The same, with the image's rows and columns flipped afterwards by coins."""
    signs = torch.where(draws[:, [_FLIP_COLUMNS, _FLIP_ROWS]] < 0.5, -1.0, 1.0)
    return torch.cat((matrix[:, :, :2] * signs[:, None, :], matrix[:, :, 2:]), 2)


def _deviation(sigma: Tensor, radius: int) -> Tensor:
    """Standard deviation in pixels of a Gaussian that is cut off at ``radius``."""
    squares = torch.arange(-radius, radius + 1, dtype=torch.float64) ** 2
    taps = torch.exp(-squares / (2 * sigma[:, None] ** 2))
    # One that blurs nothing keeps a width, too small to matter, for the division by it.
    return ((taps * squares).sum(1) / taps.sum(1)).sqrt().clamp(min=1e-3)
