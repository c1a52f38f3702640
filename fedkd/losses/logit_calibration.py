"""Logit calibration (LCC, FedLC): cross-entropy with a margin for each class, from its count."""

import torch.nn.functional as F
from torch import Tensor

SMALLEST_COUNT = 1e-8


def logit_calibration(
    logits: Tensor, targets: Tensor, class_counts: Tensor, *, calibration: float
) -> Tensor:
    """CE(logits - calibration * n^(-1/4), targets): rare classes must win by more.

    An absent class counts as 1e-8 images, as in Fed-MAS: ``100 * calibration`` is subtracted from
    its logit, so that it costs next to nothing.

    Args:
        logits: Unnormalised scores, float (batch, num_classes).
        targets: Class indices, int64 (batch,).
        class_counts: Training images per class, (num_classes,).
        calibration: Margin of a class with one image, >= 0; 0 is the cross-entropy. The default
            in the config, 0.5, is a constant in the Fed-MAS code; ours is a setting.

    Returns:
        Loss per example in nats, float (batch,), in the dtype of ``logits``.
    Source: Zhang et al., "Federated Learning with Label Distribution Skew via Logits Calibration",
    ICML 2022 (FedLC), as the Fed-MAS code computes it, but through log-softmax.
    """
    margin = calibration * class_counts.double().clamp(min=SMALLEST_COUNT) ** -0.25
    return F.cross_entropy(logits - margin.to(logits.dtype), targets, reduction="none")
