"""Weights inverse to the number of images."""

import torch
from torch import Tensor


def inverse_frequency_weights(class_counts: Tensor) -> Tensor:
    """Class weights N / (C n), C all classes, absent ones included; these have weight 0.

    Args:
        class_counts: Training images per class, (num_classes,), not all 0.

    Returns:
        Weights, float64 (num_classes,).
    Source: the re-weighting (RW) of the Fed-MAS code.
    """
    counts = class_counts.double()
    weights = counts.sum() / (len(counts) * counts.clamp(min=1))
    return torch.where(counts > 0, weights, 0.0)
