"""Focal loss: cross-entropy that fades where the true class is already probable."""

import torch
from torch import Tensor


def focal(
    logits: Tensor, targets: Tensor, class_counts: Tensor, *, gamma: float, detach: bool = False
) -> Tensor:
    """Focal loss -(1 - p_y)^gamma log p_y per example; absent classes need no rule.

    ``gamma = 0`` is the cross-entropy.

    Args:
        logits: Unnormalised scores, float (batch, num_classes).
        targets: Class indices, int64 (batch,).
        class_counts: Not used; the supervised losses share one signature.
        gamma: Exponent, >= 0.
        detach: Take the factor (1 - p_y)^gamma as a constant: the value is the same, the gradient
            is the factor times that of the cross-entropy.

    Returns:
        Loss per example in nats, float (batch,), in the dtype of ``logits``.
    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017 (eq. 4). Differs:
    softmax over exclusive classes instead of sigmoids. ``detach`` is what the Fed-MAS code
    computes.
    """
    del class_counts
    log_p = logits.log_softmax(dim=1).gather(1, targets[:, None]).squeeze(1)
    # 1 - p without cancellation. At p = 1 the derivative of the power is infinite for gamma < 1;
    # below the smallest number it is cut to 0, as is right for a loss that is 0 there.
    missed = (-torch.expm1(log_p)).clamp(min=torch.finfo(logits.dtype).tiny)
    factor = missed**gamma
    return -(factor.detach() if detach else factor) * log_p
