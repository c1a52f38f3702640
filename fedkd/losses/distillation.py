"""The distillation term of Effective Knowledge Distillation (EKD)."""

import torch.nn.functional as F
from torch import Tensor

NORM_EPSILON = 1e-12


def feature_distillation(projection: Tensor, target: Tensor) -> Tensor:
    """Squared distance of the directions of two feature vectors, 2 - 2 cos.

    Args:
        projection: The student's projection, float (batch, D).
        target: The teacher's features, float (batch, D); treated as a constant by the caller.

    Returns:
        Loss per example, float (batch,), between 0 (same direction) and 4 (opposite); a zero
        vector counts as orthogonal to everything (2).
    Source: Elbatel et al., "Federated Model Aggregation via Self-Supervised Priors for Highly
    Imbalanced Medical Image Classification", DeCaF 2023, as its code computes it.
    """
    student = F.normalize(projection, dim=1, eps=NORM_EPSILON)
    teacher = F.normalize(target, dim=1, eps=NORM_EPSILON)
    return 2 - 2 * (student * teacher).sum(dim=1)
