"""Weights by the effective number of images, and the round from which they are used."""

import math

import torch
from torch import Tensor

DEFERRED_SHARE = 0.8


def effective_number_weights(class_counts: Tensor, beta: float) -> Tensor:
    """Class weights (1 - beta) / (1 - beta^n), scaled to a mean of 1 over the present classes.

    An absent class has weight 0. ``beta = 0`` gives 1 to every present class; the closer beta is to
    1, the closer the weights are to 1 / n.

    Args:
        class_counts: Training images per class, (num_classes,), not all 0.
        beta: In [0, 1).

    Returns:
        Weights, float64 (num_classes,).
    Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019
    (eq. 3). Differs: absent classes, which the paper does not have.
    """
    counts = class_counts.double()
    present = counts > 0
    # 1 - beta^n as -expm1(n log beta): nothing cancels. beta = 0 has no logarithm, and 0^n is 0.
    covered = -torch.expm1(counts * math.log(beta)) if beta else torch.ones_like(counts)
    weights = torch.where(present, (1 - beta) / torch.where(present, covered, 1.0), 0.0)
    return weights * present.sum() / weights.sum()


def is_reweighted(round_number: int, num_rounds: int) -> bool:
    """Whether deferred re-weighting (DRW) has begun: in the last fifth of the rounds.

    Args:
        round_number: From 1.
        num_rounds: Of the whole run; the first floor(0.8 num_rounds) rounds are not re-weighted,
            and neither is a single one.
    Source: Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
    NeurIPS 2019 (deferred re-weighting at 80 % of training), by round as in Fed-MAS.
    """
    return round_number > max(1, math.floor(DEFERRED_SHARE * num_rounds))
