"""FedProx: supervised training that is held near the received student."""

from torch import Tensor

from clients.objective import OnStep
from clients.proximal import add_proximal, parameters_of
from clients.supervised import Supervised
from fedkd.data.loading import Loader
from fedkd.losses.factory import SupervisedLoss
from fedkd.models.student import Student
from fedkd.training import Losses


class FedProx(Supervised):
    """L = S + mu/2 |w - w_received|^2 over all parameters; ``mu = 0`` is ``supervised``.

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
        self._received = parameters_of(student)
        return {}

    def loss(self, student: Student, pixels: Tensor, labels: Tensor) -> Losses:
        """Loss of a batch, the proximal term included."""
        return add_proximal(super().loss(student, pixels, labels), student, self._received, self.mu)
