"""Balanced softmax: cross-entropy with the logits shifted by the log class frequency."""

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_FREQUENCY = 1e-12


def log_prior(class_counts: Tensor) -> Tensor:
    """Log of the class frequencies plus 1e-12, float like ``class_counts`` (num_classes,).

    An absent class gets log(1e-12) = -27.63, as in Fed-MAS: its logit is pushed down by that much
    in training, so that it costs nothing, and it is free to be predicted afterwards.
    """
    return torch.log(class_counts / class_counts.sum() + SMALLEST_FREQUENCY)


def balanced_softmax(logits: Tensor, targets: Tensor, class_counts: Tensor) -> Tensor:
    """Balanced softmax loss (BSM): CE(logits + log pi, targets), pi the training frequencies.

    Used in training only; the prediction is the argmax of the logits without the prior. With equal
    counts it is the cross-entropy.

    Args:
        logits: Unnormalised scores, float (batch, num_classes).
        targets: Class indices, int64 (batch,).
        class_counts: Training images per class, float (num_classes,), not all 0.

    Returns:
        Loss per example in nats, float (batch,), in the dtype of ``logits``.
    Source: Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020
    (eq. 4). Differs: the constant 1e-12 for absent classes, as in Fed-MAS.
    """
    prior = log_prior(class_counts.to(logits.dtype))
    return F.cross_entropy(logits + prior, targets, reduction="none")
