"""Whether a model is as sure as it is right: expected calibration error and reliability bins."""

import math

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]

NUM_BINS = 15
"""Bins of confidence, as in the source."""
_TOLERANCE = 1e-3


def reliability(
    labels: Integers, probabilities: Floats, num_bins: int = NUM_BINS
) -> dict[str, list[float]]:
    """Mean confidence and accuracy of the images of each bin of confidence.

    The confidence of an image is the probability of its predicted class, the most probable one,
    the first of equals. Bins are equally wide and closed above, (k / num_bins, (k + 1) / num_bins],
    so that a confidence of 1 is in the last one.

    Args:
        labels: True classes, int64 (num_images,).
        probabilities: Float (num_images, num_classes), in 0..1, each row with the sum 1.
        num_bins: >= 1.

    Returns:
        ``confidence`` and ``accuracy``, means over the bin's images, nan in a bin without any; and
        ``num_images``; each with an entry per bin, the least sure first. All bins are without
        images if any row is no distribution (scores out of 0..1, or a sum that is more than 0.001
        off 1): such scores state no confidence (our choice).

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (section 2).
    """
    sums = probabilities.sum(axis=1, dtype=np.float64)
    if np.any(np.abs(sums - 1) > _TOLERANCE) or np.any(probabilities < 0):
        labels, probabilities = labels[:0], probabilities[:0]
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    # k / num_bins is the nearest float to each edge, which a sum of steps is not.
    edges = np.arange(1, num_bins) / num_bins
    bins = np.searchsorted(edges, confidence, side="left")
    num_images = np.bincount(bins, minlength=num_bins)
    means = []
    for values in (confidence, right):
        mean = np.full(num_bins, math.nan)
        total = np.bincount(bins, weights=values, minlength=num_bins)
        np.divide(total, num_images, out=mean, where=num_images > 0)
        means.append(mean.tolist())
    return {"confidence": means[0], "accuracy": means[1], "num_images": num_images.tolist()}


def expected_calibration_error(bins: dict[str, list[float]]) -> float:
    """Mean distance of accuracy from confidence over :func:`reliability` bins, in 0..1.

    Each bin weighs as many as it has images; one without any weighs nothing. nan if there is no
    image at all. It is an estimate with a bias upwards that is large for few images, so that only
    values of the same number of images compare.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (equation 3).
    """
    num_images = np.asarray(bins["num_images"], np.float64)
    gaps = np.abs(np.asarray(bins["accuracy"]) - np.asarray(bins["confidence"]))
    filled = num_images > 0
    if not filled.any():
        return math.nan
    return float(num_images[filled] @ gaps[filled] / num_images.sum())
