"""LDAM: cross-entropy on scaled cosines with a margin that is larger for rarer classes."""

import torch
import torch.nn.functional as F
from torch import Tensor


def margins(class_counts: Tensor, max_margin: float) -> Tensor:
    """Margins proportional to n^(-1/4), the largest ``max_margin``, float64 (num_classes,).

    An absent class has margin 0.
    """
    counts = class_counts.double()
    roots = torch.where(counts > 0, counts.clamp(min=1) ** -0.25, 0.0)
    return roots * (max_margin / roots.max())


def ldam(
    cosines: Tensor, targets: Tensor, class_counts: Tensor, *, max_margin: float, scale: float
) -> Tensor:
    """LDAM loss: CE(scale * (cos - margin of the true class), targets).

    Deferred re-weighting is a matter of class weights, see ``fedkd.losses.factory``.

    Args:
        cosines: Of a cosine classifier, float (batch, num_classes).
        targets: Class indices, int64 (batch,).
        class_counts: Training images per class, (num_classes,), not all 0.
        max_margin: Margin of the rarest class that is present, > 0.
        scale: Inverse temperature of the softmax, > 0.

    Returns:
        Loss per example in nats, float (batch,), in the dtype of ``cosines``.
    Source: Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
    NeurIPS 2019 (eq. 13). Differs: absent classes, which the paper does not have.
    The defaults in the config, margins up to 0.5 and scale 30, are Fed-MAS's.
    """
    own = margins(class_counts, max_margin).to(cosines.dtype)[targets]
    shifted = cosines - F.one_hot(targets, cosines.shape[1]) * own[:, None]
    return F.cross_entropy(scale * shifted, targets, reduction="none")
