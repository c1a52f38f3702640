"""Weights inverse to the number of images."""

import torch
from torch import Tensor


def inverse_frequency_weights(class_counts: Tensor) -> Tensor:
    """Class weights N / (C n), C all classes, absent ones included; these have weight 0.

    Args:
        class_counts: Training images per class, (num_classes,).

    Returns:
        Weights, float like ``class_counts`` (num_classes,).
    """
    counts = class_counts.double()
    weights = counts.sum() / (len(counts) * counts.clamp(min=1))
    return torch.where(counts > 0, weights, 0.0).to(class_counts.dtype)
