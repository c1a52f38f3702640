"""Logit adjustment: balanced softmax with a prior of adjustable strength."""

import torch.nn.functional as F
from torch import Tensor

from fedkd.losses.balanced_softmax import log_prior


def logit_adjustment(
    logits: Tensor, targets: Tensor, class_counts: Tensor, *, tau: float
) -> Tensor:
    """CE(logits + tau log pi, targets), pi the training frequencies.

    ``tau = 1`` is balanced softmax, with its rule for absent classes; 0 is the cross-entropy.

    Args:
        logits: Unnormalised scores, float (batch, num_classes).
        targets: Class indices, int64 (batch,).
        class_counts: Training images per class, (num_classes,), not all 0.
        tau: Strength of the prior, >= 0.

    Returns:
        Loss per example in nats, float (batch,), in the dtype of ``logits``.
    Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021 (eq. 10).
    """
    return F.cross_entropy(
        logits + tau * log_prior(class_counts.to(logits.dtype)), targets, reduction="none"
    )
