"""Rings of the frequency plane: every bin's distance from frequency 0, and means over rings.

Which bin belongs to which ring is our choice.
"""

import torch
from torch import Tensor


def radii(height: int, width: int) -> Tensor:
    """Radial frequency of each bin of the full plane, float64 (height, width), unshifted.

    sqrt((2 f_u)^2 + (2 f_v)^2) with f in cycles per px: 0 for the mean, 1 for the highest frequency
    along an axis of even length ((n - 1) / n for an odd n), up to sqrt(2) in the corners. A wave of
    radius r has a period of 2 / r px.
    """
    rows = 2 * torch.fft.fftfreq(height, dtype=torch.float64)
    columns = 2 * torch.fft.fftfreq(width, dtype=torch.float64)
    return torch.hypot(rows[:, None], columns[None, :])


def num_rings(height: int, width: int) -> int:
    """Rings K of the plane: half the shorter side, rounded down; 0 for a side of 1 px."""
    return min(height, width) // 2


def ring_of(height: int, width: int) -> Tensor:
    """Ring round(radius K) of each bin, int64 (height, width): 0 is the mean, above K the corners.

    Ring k has the radius k / K, and none of 1..K is empty. Of an image twice as long as wide, or
    longer, ring 0 holds the slowest waves along the longer side too, which no ring resolves.
    """
    return torch.round(radii(height, width) * num_rings(height, width)).long()


def ring_means(plane: Tensor) -> Tensor:
    """Means over the rings 1..K of planes, without the mean (ring 0) and without corners.

    White noise gives a flat profile; sums instead of means would grow with the radius.

    Args:
        plane: Float (..., height, width), unshifted.

    Returns:
        Float64 (..., K); no ring for a side of 1 px.
    """
    height, width = plane.shape[-2:]
    num, ring = num_rings(height, width), ring_of(height, width).flatten().to(plane.device)
    sums = plane.new_zeros((*plane.shape[:-2], int(ring.max()) + 1), dtype=torch.float64)
    sums.index_add_(-1, ring, plane.double().flatten(-2))
    counts = torch.bincount(ring, minlength=num + 1)
    return sums[..., 1 : num + 1] / counts[1 : num + 1]


def ring_frequencies(height: int, width: int) -> Tensor:
    """Radius k / K of the rings 1..K, float64 (K,)."""
    num = num_rings(height, width)
    return torch.arange(1, num + 1, dtype=torch.float64) / num
