"""FedAdam: the server steps by Adam."""

import flwr.serverapp.strategy as flower

from strategies.base import WEIGHT, Setup
from strategies.fedopt import FedOpt


class FedAdam(FedOpt):
    """Adam on the average update, with running means of it and of its square.

    Source: Reddi et al., "Adaptive Federated Optimization", ICLR 2021 (algorithm 2). The step is
    Flower's. Differs, as Flower does: v starts at 0 instead of tau^2, and both means are
    corrected for their start at 0 as Adam does, though with the exponent round + 1 where Adam has
    the round: in the first, the factor sqrt(1 - beta_2^2) / (1 - beta_1^2).
    """

    def __init__(
        self,
        setup: Setup,
        *,
        server_learning_rate: float,
        beta_1: float,
        beta_2: float,
        tau: float,
    ) -> None:
        optimizer = flower.FedAdam(
            weighted_by_key=WEIGHT,
            eta=server_learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            tau=tau,
        )
        super().__init__(setup, optimizer)
