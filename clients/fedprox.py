"""FedProx: supervised training that is held near the received student."""

from torch import Tensor

from clients.objective import OnStep
from clients.supervised import Supervised
from fedkd.data.loading import Loader
from fedkd.losses.factory import SupervisedLoss
from fedkd.models.student import Student
from fedkd.training import Losses


class FedProx(Supervised):
    """L = S + mu/2 |w - w_received|^2 over all parameters, BatchNorm's scale and shift included.

    ``mu = 0`` is ``supervised``. Where parameters stay with the client (``strategy.exchange``),
    theirs are compared with their values at the beginning of the round.

    Args:
        loss: The supervised loss S.
        mu: Weight of the proximal term, >= 0.

    Source: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020 (eq. 2).
    """

    def __init__(self, loss: SupervisedLoss, mu: float) -> None:
        super().__init__(loss)
        self.mu = mu
        self._received: list[Tensor] = []

    def start_round(
        self, student: Student, loader: Loader, round_number: int, on_step: OnStep | None = None
    ) -> dict[str, float]:
        """Keep the received parameters."""
        self._received = [parameter.detach().clone() for parameter in student.parameters()]
        return {}

    def loss(self, student: Student, pixels: Tensor, labels: Tensor) -> Losses:
        """Loss of a batch, the proximal term included."""
        losses = super().loss(student, pixels, labels)
        if not self.mu:
            return losses
        distance = sum(
            (
                (parameter - received).square().sum()
                for parameter, received in zip(student.parameters(), self._received, strict=True)
            ),
            start=losses.total.new_zeros(()),
        )
        proximal = self.mu / 2 * distance
        total = losses.total + proximal
        terms = {**losses.terms, "loss": total, "loss_proximal": proximal}
        return Losses(total, losses.per_example, terms)
