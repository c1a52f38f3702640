"""The proximal term of FedProx, which holds a student near the one that was received."""

from collections.abc import Sequence

from torch import Tensor

from fedkd.models.student import Student
from fedkd.training import Losses


def parameters_of(student: Student) -> list[Tensor]:
    """Copies of all parameters, BatchNorm's scale and shift included, its statistics not."""
    return [parameter.detach().clone() for parameter in student.parameters()]


def add_proximal(losses: Losses, student: Student, received: Sequence[Tensor], mu: float) -> Losses:
    """The losses of a batch with mu/2 |w - w_received|^2 in their total.

    The term belongs to no image and no class: losses per example, of which class losses are made,
    stay the objective's own. Where parameters stay with the client (``strategy.exchange``), theirs
    are compared with their values at the beginning of the round.

    Args:
        losses: Of any objective.
        student: In training.
        received: Its :func:`parameters_of` as it was received; not read with ``mu = 0``.
        mu: Weight of the term, >= 0; 0 gives back the losses as they are.

    Source: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020 (eq. 2).
    """
    if not mu:
        return losses
    distance = sum(
        (
            (parameter - before).square().sum()
            for parameter, before in zip(student.parameters(), received, strict=True)
        ),
        start=losses.total.new_zeros(()),
    )
    proximal = mu / 2 * distance
    total = losses.total + proximal
    terms = {**losses.terms, "loss": total, "loss_proximal": proximal}
    return Losses(total, losses.per_example, terms)
