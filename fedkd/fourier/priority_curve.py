"""The learning priority of a network over many images, with what another sample would have given.

The bands, the intervals and what an image counts are our choice.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd import seeding
from fedkd.data.loading import Loader, in_order
from fedkd.fourier.priority import (
    Features,
    band_share,
    centroid,
    feature_psd,
    gradient_psd,
    input_gradients,
)
from fedkd.fourier.rings import ring_frequencies, ring_means
from fedkd.probing.controls import Tell

Floats = npt.NDArray[np.float64]
ScoreName = Literal["ce", "top", "features"]
BANDS: Mapping[str, tuple[float, float]] = {
    "lowest": (0.0, 0.125),
    "low": (0.125, 0.25),
    "middle": (0.25, 0.5),
    "high": (0.5, math.inf),
}
"""Octaves of the radius, low <= r < high, 1 being the highest frequency of an axis: periods of more
than 16 px, 8 to 16, 4 to 8, and below 4 px (the ring of 1 included). A flat spectrum has shares of
nearly 1/8, 1/8, 1/4 and 1/2; images of 16 px and less have no ring in the lowest."""
NUM_RESAMPLES = 1000


class Interval(NamedTuple):
    """A value over all images, and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class PriorityCurve:
    """What :func:`priority_curve` gives.

    Attributes:
        frequencies: Radius of each ring, float64 (K,).
        priority: Share of each ring, float64 (K,); sums to 1. nan if no image has a gradient.
        sd: Standard deviation over images of what an image adds to the share, float64 (K,).
        low: Lower bound of the share's 95 % interval, float64 (K,).
        high: Upper bound.
        centroid: Mean frequency.
        bands: Share of each of ``BANDS``.
        num_images: How many images.
        num_groups: How many lesions, patients or single images, from which resamples are drawn; of
            few, intervals are too narrow.
    """

    frequencies: Floats
    priority: Floats
    sd: Floats
    low: Floats
    high: Floats
    centroid: Interval
    bands: Mapping[str, Interval]
    num_images: int
    num_groups: int


def read_profiles(
    network: Features,
    score: ScoreName,
    loader: Loader,
    batch_size: int,
    seed: int,
    tell: Tell,
    what: str,
) -> Floats:
    """Ring means of the normalised gradient PSD of each image, float64 (num_images, K).

    Args:
        network: Gives the logits of each image, or the features with score ``"features"``; in eval
            mode.
        score: Whose gradient: ``"ce"``, the cross-entropy of the true label; ``"top"``, the largest
            logit; ``"features"``, random projections (see :func:`feature_psd`).
        loader: The images.
        batch_size: Images per pass; with ``"features"`` the draws depend on it.
        seed: Of the draws, which are the same for all networks with as many features.
        tell: Told after each batch.
        what: For ``tell``.
    """
    parts: list[Tensor] = []
    plan = in_order(len(loader), batch_size)
    tell(what, 0, len(loader))
    with closing(loader.batches(plan)) as batches:
        for rows, (pixels, labels) in zip(plan, batches, strict=True):
            if score == "features":
                rng = seeding.generator(seed, "spectrum", int(rows[0]))
                psd = feature_psd(network, pixels, rng)
            else:
                psd = gradient_psd(input_gradients(_Score(network, score, labels), pixels))
            parts.append(ring_means(psd).cpu())
            tell(what, int(rows[-1]) + 1, len(loader))
    return torch.cat(parts).numpy()


@dataclass(frozen=True)
class _Score:
    network: Features
    name: ScoreName
    labels: Tensor

    def __call__(self, pixels: Tensor) -> Tensor:
        # Widened: the gradient of a loss near 0 is a difference of numbers near 1.
        logits = self.network(pixels).double()
        if self.name == "ce":
            return F.cross_entropy(logits, self.labels, reduction="none")
        return logits.amax(1)


def priority_curve(
    profiles: Floats, shown: Sequence[str], height: int, width: int, seed: int
) -> PriorityCurve:
    """Mean priority of some images, with 95 % percentile intervals.

    The bootstrap draws what the images show (lesions, patients) with replacement, whole.

    Args:
        profiles: Of :func:`read_profiles`, at least one image; one without any gradient is all 0,
            and adds nothing.
        shown: What each image shows.
        height: Of the images in px.
        width: Of the images in px.
        seed: Of the resamples; equal images and seed make equal draws for all networks.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, with groups as units.
    """
    names, members = np.unique(np.asarray(shown), return_inverse=True)
    sums = np.zeros((len(names), profiles.shape[1]))
    np.add.at(sums, members, profiles)
    rng = seeding.rng(seed, "spectrum-bootstrap")
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=NUM_RESAMPLES)
    total = profiles.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.vstack([profiles.sum(0), drawn @ sums])
        shares /= shares.sum(1, keepdims=True)
        sd = (profiles * (len(profiles) / total)).std(0)
    curves = torch.from_numpy(shares)
    low, high = np.quantile(shares[1:], (0.025, 0.975), axis=0)
    return PriorityCurve(
        frequencies=ring_frequencies(height, width).numpy(),
        priority=shares[0],
        sd=sd,
        low=low,
        high=high,
        centroid=_interval(centroid(curves, height, width)),
        bands={name: _interval(band_share(curves, height, width, b)) for name, b in BANDS.items()},
        num_images=len(profiles),
        num_groups=len(names),
    )


def _interval(values: Tensor) -> Interval:
    """Of the value over all images, which comes first, and over the resamples."""
    first, *_ = values.tolist()
    low, high = np.quantile(values[1:].numpy(), (0.025, 0.975))
    return Interval(first, float(low), float(high))
