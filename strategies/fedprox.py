"""FedProx: FedAvg of students that are held near the one they received."""

from fedkd import wire
from strategies.fedavg import FedAvg


class FedProx(FedAvg):
    """Weights of FedAvg; clients add mu/2 |w - w_received|^2 to whatever they minimise.

    mu is ``fedprox.mu`` of the recipe; 0 is FedAvg. Objective fedprox is the same term with the
    supervised loss; this strategy lends it to every objective.

    Source: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020 (algorithm 2).
    Differs: clients weigh by images instead of being sampled by them, and all do the same number of
    epochs.
    """

    def instructions(self) -> dict[str, float]:
        """The weight of the proximal term."""
        return {wire.PROXIMAL_MU: self.setup.proximal_mu}
