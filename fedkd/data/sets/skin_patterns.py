"""Random fields from which skin and lesions are drawn: band-limited noise, networks, dots, lines.

All lengths are in half image widths (the image spans -1..1 in both directions), all frequencies in
cycles per image width, so that a pattern looks alike at any resolution that can show it.

Fields are float32. Scalars are Python floats throughout: a NumPy float64 scalar would turn the
fields into float64, at twice the time.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.floating[Any]]


@lru_cache(maxsize=8)
def coordinates(size: int) -> tuple[Field, Field]:
    """Position of each pixel's centre, x to the right and y down, each float32 (size, size)."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1).astype(np.float32)
    x, y = np.meshgrid(line, line)
    x.flags.writeable = y.flags.writeable = False
    return x, y


@lru_cache(maxsize=8)
def frequencies(size: int) -> Field:
    """Radial frequency of each coefficient of ``rfft2``, in cycles per image width."""
    rows, columns = np.fft.fftfreq(size) * size, np.fft.rfftfreq(size) * size
    radial: Field = np.hypot(rows[:, None], columns[None, :]).astype(np.float32)
    radial.flags.writeable = False
    return radial


def sigmoid(values: Field) -> Field:
    """Logistic function; written with tanh, which cannot overflow."""
    squashed: Field = np.tanh(0.5 * values)
    return 0.5 + 0.5 * squashed


class Canvas:
    """Draws fields of one image from one stream of random numbers.

    Args:
        size: Pixels along each edge.
        rng: The image's own stream.
        magnification: Above 1 enlarges every pattern, as a closer camera would.
    """

    def __init__(self, size: int, rng: np.random.Generator, magnification: float = 1.0) -> None:
        self.size = size
        self.rng = rng
        x, y = coordinates(size)
        self.magnification = magnification
        self.x, self.y = x / magnification, y / magnification

    def noise(self, frequency: float, octaves: float = 0.5) -> Field:
        """Gaussian noise of unit variance around a frequency; zero if no pixel can show it.

        Args:
            frequency: Centre of the band in cycles per image width at magnification 1.
            octaves: Standard deviation of the band on a log2 axis.
        """
        radial = frequencies(self.size)
        centre = frequency / self.magnification
        distance = np.log2(np.maximum(radial, 0.5) / centre) / octaves
        band = np.exp(-0.5 * distance * distance)
        band[0, 0] = 0
        white = self.rng.standard_normal((2, *radial.shape), dtype=np.float32)
        energy = float(np.sqrt(np.square(band).sum(dtype=np.float64)))
        if energy < 1e-3:
            return np.zeros((self.size, self.size), np.float32)
        # Each coefficient stands for itself and its conjugate and has a real and an imaginary part.
        spectrum = (white[0] + 1j * white[1]) * band * (self.size**2 / (2 * energy))
        return np.fft.irfft2(spectrum, s=(self.size, self.size)).astype(np.float32)

    def network(self, frequency: float, irregularity: float) -> Field:
        """Lines of a honeycomb, 0 in the holes and 1 on the lines.

        Three plane waves at 60 degrees make the lattice; noise bends it.

        Args:
            frequency: Meshes per image width.
            irregularity: Shift of the lattice by noise, in meshes; 0 is a perfect honeycomb.
        """
        angle = self.rng.uniform(0, math.pi)
        turn = math.pi * frequency
        bend = 2 * irregularity / frequency
        x = self.x + bend * self.noise(frequency * 0.35)
        y = self.y + bend * self.noise(frequency * 0.35)
        lattice = np.zeros_like(self.x)
        for third in range(3):
            direction = angle + third * math.pi / 3
            lattice += np.cos(turn * (math.cos(direction) * x + math.sin(direction) * y))
        return sigmoid(3.0 * (0.1 - lattice))

    def blobs(self, frequency: float, coverage: float = 1.0) -> Field:
        """Roundish islands, 1 inside, where noise exceeds ``coverage`` standard deviations."""
        return sigmoid(6.0 * (self.noise(frequency, 0.25) - coverage))

    def lines(self, frequency: float, width: float, breaks: float = -1.0) -> Field:
        """Winding lines, 1 on the line: the zero crossings of noise.

        Args:
            frequency: Of the noise; a line about every half period.
            width: Half width of a line in deviations of the noise.
            breaks: Level of a second noise below which lines are interrupted; -3 leaves them whole.
        """
        offset = self.noise(frequency, 0.35) / width
        line = np.exp(-offset * offset)
        if breaks <= -3:
            return line
        return line * sigmoid(5.0 * (self.noise(frequency * 0.6) - breaks))

    def dots(self, count: int, radius: float, spread: float) -> Field:
        """Round dots, 1 in their middle, at normally distributed places.

        Args:
            count: Number of dots.
            radius: Of a dot in half image widths; each dot varies by a third.
            spread: Standard deviation of their places.
        """
        if count == 0:
            return np.zeros_like(self.x)
        places = self.rng.normal(0, spread, (2, count, 1)).astype(np.float32)
        radii = (radius * self.rng.uniform(0.7, 1.4, (count, 1))).astype(np.float32)
        across = np.square((self.x[0][None] - places[0]) / radii)
        down = np.square((self.y[:, 0][None] - places[1]) / radii)
        nearest = (across[:, None, :] + down[:, :, None]).min(axis=0)
        return sigmoid(4.0 * (1.0 - nearest))
