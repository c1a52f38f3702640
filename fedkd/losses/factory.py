"""Supervised losses by name."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

from fedkd.losses.balanced_softmax import balanced_softmax
from fedkd.losses.cross_entropy import cross_entropy

LossName = Literal["ce", "bsm"]
SupervisedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits (batch, C), targets (batch,), class_counts (C,)) -> loss per example (batch,)."""


class Loss(NamedTuple):
    """A supervised loss and the line that describes it."""

    compute: SupervisedLoss
    description: str


LOSSES: dict[LossName, Loss] = {
    "ce": Loss(cross_entropy, "cross-entropy"),
    "bsm": Loss(balanced_softmax, "balanced softmax (Ren et al. 2020): CE with the class prior"),
}
