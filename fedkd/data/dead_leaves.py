"""Procedural natural images: the dead leaves model, random occluding shapes of all sizes.

They have the statistics of natural images (edges, occlusion, power spectra that fall with the
square of the frequency) and no owner: a teacher can be pre-trained on them without any data set.
"""

import logging
import time

import numpy as np
import numpy.typing as npt

from fedkd import seeding

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

_REPORT_EVERY_S = 5.0
BATCH = 64
"""Images drawn from one stream; part of what defines the images of a seed."""
REPORT_EVERY_S = 5.0
NUM_LEAVES = 300
MIN_RADIUS = 0.03
MAX_RADIUS = 0.5
"""Radii as fractions of the image's side, with density proportional to r^-3."""


def dead_leaves(num_images: int, size: int, seed: int) -> npt.NDArray[np.uint8]:
    """Dead leaves images; the same images whatever ``num_images`` is.

    Leaves are ellipses and rectangles of any angle, radii with density r^-3, in colours around a
    palette of the image, each with a linear shade and its own band-limited texture.

    Args:
        num_images: How many.
        size: Side in px.
        seed: Images of different seeds are independent.

    Returns:
        uint8 (num_images, 3, size, size).
    Source: Baradad et al., "Learning to See by Looking at Noise", NeurIPS 2021; Lee, Mumford and
    Huang, "Occlusion Models for Natural Images", IJCV 2001. Differs: shapes, palettes, shades and
    textures are our choice.
    """
    images = np.empty((num_images, 3, size, size), np.uint8)
    last = time.monotonic()
    for start in range(0, num_images, BATCH):
        if time.monotonic() - last >= _REPORT_EVERY_S:
            last = time.monotonic()
            logger.info("drew %d of %d images", start, num_images)
        batch = _draw(size, seeding.rng(seed, "dead-leaves", start // BATCH))
        images[start : start + BATCH] = batch[: num_images - start]
        if time.monotonic() - last >= REPORT_EVERY_S:
            last = time.monotonic()
            logger.info("drew %d of %d dead leaves images", start + BATCH, num_images)
    return images


def _draw(size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """One batch, painted back to front, leaf by leaf, on all images at once."""
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    y, x = grid[:, None], grid[None, :]
    grey = rng.uniform(0.15, 0.85, (BATCH, 1))
    palette = (grey + 0.12 * rng.standard_normal((BATCH, 3))).astype(np.float32)
    spread = rng.uniform(0.03, 0.2, (BATCH, 1)).astype(np.float32)
    canvas = np.repeat(palette[:, :, None, None], size, 2).repeat(size, 3)
    textures = _textures(size, rng)
    # Inverse of the distribution function of a density r^-3 between the two radii.
    low, high = MIN_RADIUS**-2.0, MAX_RADIUS**-2.0
    radii = (low - rng.uniform(size=(NUM_LEAVES, BATCH)) * (low - high)) ** -0.5
    for radius in radii.astype(np.float32):
        centre = rng.uniform(-0.1, 1.1, (2, BATCH, 1, 1)).astype(np.float32)
        angle = rng.uniform(0, np.pi, (BATCH, 1, 1)).astype(np.float32)
        aspect = rng.uniform(0.4, 1.0, (BATCH, 1, 1)).astype(np.float32)
        dx, dy = x - centre[0], y - centre[1]
        along = (np.cos(angle) * dx + np.sin(angle) * dy) / radius[:, None, None]
        across = (np.cos(angle) * dy - np.sin(angle) * dx) / (aspect * radius[:, None, None])
        round_ = rng.uniform(size=(BATCH, 1, 1)) < 0.5
        inside = (
            np.where(round_, along**2 + across**2, np.maximum(np.abs(along), np.abs(across)) ** 2)
            < 1
        )
        # Leaves of one image differ more in brightness than in hue, as natural surfaces do.
        tint = 1.2 * rng.standard_normal((BATCH, 1)) + 0.5 * rng.standard_normal((BATCH, 3))
        colour = palette + spread * tint.astype(np.float32)
        shade = 0.15 * rng.standard_normal((BATCH, 1, 1)).astype(np.float32) * along
        contrast = 0.2 * rng.uniform(0, 1, (BATCH, 1, 1)).astype(np.float32) ** 2
        grain = contrast * textures[rng.integers(len(textures), size=BATCH)]
        leaf = colour[:, :, None, None] + (shade + grain)[:, None]
        np.copyto(canvas, leaf, where=inside[:, None])
    return (canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _textures(size: int, rng: np.random.Generator, num: int = 64) -> Floats:
    """Noise with power-law or band-pass spectra, mean 0 and deviation 1, (num, size, size)."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    frequency = np.sqrt(fx**2 + fy**2)
    frequency[0, 0] = 1.0
    slope = rng.uniform(0.5, 2.0, (num, 1, 1))
    centre = np.exp(rng.uniform(np.log(1.5 / size), np.log(0.4), (num, 1, 1)))
    band = np.exp(-0.5 * (np.log(frequency / centre) / 0.4) ** 2)
    gain = np.where(rng.uniform(size=(num, 1, 1)) < 0.5, frequency**-slope, band)
    gain[:, 0, 0] = 0.0
    noise = np.fft.rfft2(rng.standard_normal((num, size, size)))
    texture = np.fft.irfft2(noise * gain, s=(size, size))
    scaled: Floats = (texture / texture.std((1, 2), keepdims=True)).astype(np.float32)
    return scaled
