"""FedAdagrad: the server steps by Adagrad."""

import flwr.serverapp.strategy as flower

from strategies.base import WEIGHT, Setup
from strategies.fedopt import FedOpt


class FedAdagrad(FedOpt):
    """Adagrad on the average update: v is the sum of all squared updates, m the update itself.

    Source: Reddi et al., "Adaptive Federated Optimization", ICLR 2021 (algorithm 2). The step is
    Flower's. Differs, as Flower does: v starts at 0 instead of tau^2.
    """

    def __init__(self, setup: Setup, *, server_learning_rate: float, tau: float) -> None:
        optimizer = flower.FedAdagrad(weighted_by_key=WEIGHT, eta=server_learning_rate, tau=tau)
        super().__init__(setup, optimizer)
