"""FedYogi: the server steps by Yogi."""

import flwr.serverapp.strategy as flower

from strategies.base import WEIGHT, Setup
from strategies.fedopt import FedOpt


class FedYogi(FedOpt):
    """Yogi on the average update: v moves towards each square by a fixed share of that square.

    v <- v - (1 - beta_2) delta^2 sign(v - delta^2) shrinks more slowly than Adam's v and is never
    negative.

    Source: Reddi et al., "Adaptive Federated Optimization", ICLR 2021 (algorithm 2). The step is
    Flower's. Differs, as Flower does: v starts at 0 instead of tau^2, and no mean is
    corrected for its start at 0.
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
        optimizer = flower.FedYogi(
            weighted_by_key=WEIGHT,
            eta=server_learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            tau=tau,
        )
        super().__init__(setup, optimizer)
