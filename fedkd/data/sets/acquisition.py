"""How a hospital photographs a lesion: optics, light, colour, sensor, compression, artefacts.

Every hospital has its own settings and every picture varies a little around them, so that sites
differ as real ones do: a classifier can tell them apart and one trained at one loses at another.
Synthetic, and all numbers are our choice.
"""

import io
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedkd.data.sets.skin_patterns import Canvas, Field, coordinates, frequencies, sigmoid
from fedkd.seeding import rng as derived_rng


@dataclass(frozen=True)
class Hospital:
    """Camera settings and habits of one hospital.

    Attributes:
        magnification: Above 1 is closer.
        exposure: Gain on all colours.
        warmth: Log gain of red against blue; below 0 is a cold light.
        tint: Log gain of green against magenta.
        saturation: Strength of colours; 1 leaves them.
        gamma: Exponent on the picture; above 1 darkens the middle tones.
        unevenness: Relative fall of light across the picture.
        vignette: Relative darkening of the corners.
        field_stop: Chance of the black rim of a round field of view.
        blur: Standard deviation of the blur in hundredths of the image width.
        noise: Standard deviation of the sensor's noise at full light.
        quality: JPEG quality, 1..95.
        hair: Mean number of hairs on the half of the pictures that may have some, at most 12.
        ruler: Chance of ruler ticks along an edge.
        bubbles: Mean number of gel bubbles.
    """

    magnification: float
    exposure: float
    warmth: float
    tint: float
    saturation: float
    gamma: float
    unevenness: float
    vignette: float
    field_stop: float
    blur: float
    noise: float
    quality: float
    hair: float
    ruler: float
    bubbles: float


_RANGES: dict[str, tuple[float, float]] = {
    "magnification": (0.82, 1.22),
    "exposure": (0.82, 1.12),
    "warmth": (-0.16, 0.20),
    "tint": (-0.13, 0.07),
    "saturation": (0.65, 1.35),
    "gamma": (0.8, 1.3),
    "unevenness": (0.0, 0.22),
    "vignette": (0.0, 0.45),
    "field_stop": (-0.3, 0.6),
    "blur": (0.3, 1.2),
    "noise": (0.004, 0.035),
    "quality": (55, 95),
    "hair": (0.0, 4.0),
    "ruler": (-0.2, 0.4),
    "bubbles": (-1.5, 2.0),
}
_STEPS = np.sqrt([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47])


def hospital(seed: int, site: int) -> Hospital:
    """Settings of a hospital; they depend on nothing but the seed and its number.

    Setting k of site s lies at the fraction ``(offset_k + s * sqrt(prime_k)) mod 1`` of its range
    with a random offset, so that neighbouring sites are far apart and many fill the range evenly.
    Negative chances and means count as zero.

    Source: additive recurrence (Kronecker sequence), textbook method.
    """
    offsets = derived_rng(seed, "lesions/hospitals").random(len(_RANGES))
    places = (offsets + site * _STEPS) % 1
    return Hospital(**{
        name: low + float(place) * (high - low)
        for (name, (low, high)), place in zip(_RANGES.items(), places, strict=True)
    })  # fmt: skip


def photograph(skin: Field, settings: Hospital, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Picture of ``skin`` as this hospital stores it.

    Args:
        skin: Reflectance 0..1, float32 (3, size, size).
        settings: The hospital.
        rng: The picture's own stream.

    Returns:
        Decoded JPEG, uint8 (3, size, size).
    """
    size = skin.shape[-1]
    x, y = coordinates(size)
    canvas = Canvas(size, rng)
    picture = _artefacts(skin, settings, canvas)
    distance = np.hypot(x, y)
    angle = rng.uniform(0, 2 * math.pi)
    fall = settings.unevenness * rng.uniform(0.5, 1.5)
    light = 1 + fall * (math.cos(angle) * x + math.sin(angle) * y)
    light *= 1 - settings.vignette * rng.uniform(0.7, 1.3) * distance**2 / 2
    light *= settings.exposure * math.exp(rng.normal(0, 0.06))
    if rng.random() < settings.field_stop:
        light *= sigmoid((rng.uniform(0.98, 1.25) - distance) / 0.025)
    warmth = settings.warmth + rng.normal(0, 0.03)
    tint = settings.tint + rng.normal(0, 0.02)
    gains = np.exp(np.array([warmth / 2, tint, -warmth / 2], np.float32))[:, None, None]
    picture = _blur(picture * light * gains, settings.blur * rng.uniform(0.7, 1.4) * size / 100)
    grey = picture.mean(axis=0)
    picture = grey + settings.saturation * (picture - grey)
    picture = np.clip(picture, 0, 1) ** settings.gamma
    grain = rng.standard_normal(picture.shape, dtype=np.float32)
    picture += settings.noise * np.sqrt(picture + 0.05) * grain
    pixels = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return _compress(pixels, int(np.clip(round(settings.quality + rng.normal(0, 4)), 30, 95)))


def _artefacts(skin: Field, settings: Hospital, canvas: Canvas) -> Field:
    """Hairs, ruler ticks and gel bubbles on the skin."""
    rng, x, y = canvas.rng, canvas.x, canvas.y
    picture = skin
    num_hairs = min(int(rng.poisson(settings.hair)), 12) if rng.random() < 0.5 else 0
    for _ in range(num_hairs):
        angle, bend = rng.uniform(0, math.pi), rng.normal(0, 0.35)
        cos, sin = math.cos(angle), math.sin(angle)
        along = cos * x + sin * y
        across = cos * y - sin * x - rng.uniform(-0.9, 0.9) - bend * along**2
        start, length = rng.uniform(-1.5, 0.3), rng.uniform(0.6, 2.2)
        on = np.abs(along - (start + length / 2)) < length / 2
        width = rng.uniform(0.012, 0.026)
        hair = np.exp(-np.square(across / width)) * on * rng.uniform(0.4, 0.9)
        picture = picture * (1 - hair)
    if rng.random() < settings.ruler:
        line, other = (x, y) if rng.random() < 0.5 else (y, x)
        tick = np.abs((line * rng.uniform(5, 8)) % 1 - 0.5) < 0.06
        edge = rng.uniform(0.75, 0.9) * (1 if rng.random() < 0.5 else -1)
        ticks = (tick & (np.abs(other - edge) < 0.09)).astype(np.float32)
        picture = picture * (1 - 0.75 * ticks)
    for _ in range(int(rng.poisson(max(settings.bubbles, 0)))):
        to_right, down, radius = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0.05, 0.16)
        ring = (np.hypot(x - to_right, y - down) - radius) / 0.025
        picture = picture + rng.uniform(0.1, 0.3) * np.exp(-ring * ring)
    return picture


def _blur(picture: Field, deviation: float) -> Field:
    """Gaussian blur in the Fourier domain; ``deviation`` in pixels. The picture wraps around."""
    size = picture.shape[-1]
    turn = 2 * math.pi * deviation / size
    transfer = np.exp(-0.5 * np.square(turn * frequencies(size)))
    blurred = np.fft.irfft2(np.fft.rfft2(picture) * transfer, s=(size, size))
    return blurred.astype(np.float32)


def _compress(pixels: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    """JPEG encoded and decoded."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as image:
        return np.asarray(image).transpose(2, 0, 1)
