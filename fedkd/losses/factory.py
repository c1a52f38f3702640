"""Supervised losses by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from pydantic import Field
from torch import Tensor

from fedkd.config import Section
from fedkd.losses.balanced_softmax import balanced_softmax
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.effective_number import effective_number_weights, is_reweighted
from fedkd.losses.focal import focal
from fedkd.losses.inverse_frequency import inverse_frequency_weights
from fedkd.losses.ldam import ldam
from fedkd.losses.logit_adjustment import logit_adjustment
from fedkd.losses.logit_calibration import logit_calibration

LossName = Literal[
    "ce", "bsm", "focal", "focal_detached", "ldam", "cb", "rw", "lcc", "logit_adjustment"
]
PerExample = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits (batch, C), targets (batch,), class_counts (C,)) -> loss per example (batch,)."""


class LossConfig(Section):
    """Settings of the supervised losses; each loss reads its own."""

    focal_gamma: float = Field(default=2.0, ge=0)
    """Exponent of focal and focal_detached, >= 0; 0 is the cross-entropy."""
    beta: float = Field(default=0.9999, ge=0, lt=1)
    """Of the effective number of images, in [0, 1): for cb in all rounds, for ldam and
    class-balanced EKD in the last fifth of the rounds. 0 weighs all present classes equally."""
    tau: float = Field(default=1.0, ge=0)
    """Strength of the prior of logit_adjustment, >= 0; 1 is bsm, 0 is ce."""
    max_margin: float = Field(default=0.5, gt=0)
    """Margin of ldam for the rarest class, in units of the cosine, > 0."""
    scale: float = Field(default=30.0, gt=0)
    """Factor of ldam on the cosines, > 0."""
    calibration: float = Field(default=0.5, ge=0)
    """Margin of lcc for a class with one image, in units of the logits, >= 0; 0 is ce."""


@dataclass(frozen=True)
class SupervisedLoss:
    """A supervised loss, ready for one client and one round.

    Attributes:
        unweighted: The loss per example.
        class_counts: The client's training images per class, (num_classes,).
        class_weights: Float64 (num_classes,), 0 for an absent class; None means 1.
    """

    unweighted: PerExample
    class_counts: Tensor
    class_weights: Tensor | None = None

    def per_example(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss per example, times the weight of its class, (batch,), dtype of the logits."""
        losses = self.unweighted(logits, targets, self.class_counts)
        if self.class_weights is None:
            return losses
        return losses * self.class_weights.to(losses.dtype)[targets]

    def mean(self, per_example: Tensor, targets: Tensor) -> Tensor:
        """What is minimised, a scalar: the sum of :meth:`per_example` over the sum of weights.

        At least one target is of a class that the client counts: it trains on no other images.
        """
        if self.class_weights is None:
            return per_example.mean()
        return per_example.sum() / self.class_weights.to(per_example.dtype)[targets].sum()


@dataclass(frozen=True)
class Entry:
    """A supervised loss: how its two parts are made, and the line that describes it."""

    description: str
    unweighted: Callable[[LossConfig], PerExample]
    class_weights: Callable[[LossConfig, Tensor, bool], Tensor] | None = None
    """(config, class counts, whether deferred re-weighting has begun) -> weights."""


LOSSES: dict[LossName, Entry] = {
    "ce": Entry("cross-entropy", lambda _: cross_entropy),
    "bsm": Entry(
        "balanced softmax: CE with the class prior (Ren et al. 2020)", lambda _: balanced_softmax
    ),
    "focal": Entry(
        "focal loss (Lin et al. 2017)", lambda config: partial(focal, gamma=config.focal_gamma)
    ),
    "focal_detached": Entry(
        "focal loss whose factor has no gradient, as in Fed-MAS",
        lambda config: partial(focal, gamma=config.focal_gamma, detach=True),
    ),
    "ldam": Entry(
        "margins on a cosine classifier, re-weighted in the last fifth (Cao et al. 2019)",
        lambda config: partial(ldam, max_margin=config.max_margin, scale=config.scale),
        lambda config, counts, begun: effective_number_weights(counts, config.beta * begun),
    ),
    "cb": Entry(
        "CE weighted by the effective number of images (Cui et al. 2019)",
        lambda _: cross_entropy,
        lambda config, counts, _: effective_number_weights(counts, config.beta),
    ),
    "rw": Entry(
        "CE weighted by the inverse class frequency",
        lambda _: cross_entropy,
        lambda _, counts, __: inverse_frequency_weights(counts),
    ),
    "lcc": Entry(
        "logit calibration: CE with margins from class counts (Zhang et al. 2022)",
        lambda config: partial(logit_calibration, calibration=config.calibration),
    ),
    "logit_adjustment": Entry(
        "CE with the class prior times tau (Menon et al. 2021)",
        lambda config: partial(logit_adjustment, tau=config.tau),
    ),
}


def make_loss(
    name: LossName,
    config: LossConfig,
    class_counts: Tensor,
    round_number: int,
    num_rounds: int,
) -> SupervisedLoss:
    """The supervised loss of one client in one round.

    Args:
        name: Which loss.
        config: Its settings.
        class_counts: The client's training images per class, of any dtype, (num_classes,), not
            all 0.
        round_number: From 1; only the weights of ``ldam`` depend on it.
        num_rounds: Of the whole run.
    """
    entry = LOSSES[name]
    weights = None
    if entry.class_weights:
        begun = is_reweighted(round_number, num_rounds)
        weights = entry.class_weights(config, class_counts, begun)
    return SupervisedLoss(entry.unweighted(config), class_counts, weights)
