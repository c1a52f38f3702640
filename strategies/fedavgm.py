"""FedAvgM: the server steps by momentum."""

from collections.abc import Mapping, Sequence
from typing import Any

import flwr.serverapp.strategy as flower
import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord

from strategies.base import WEIGHT, Metrics, Setup
from strategies.fedavg import FedAvg


class FedAvgM(FedAvg):
    """SGD with momentum on the average update, by numbers of images.

    With delta the average minus the received student: v <- momentum v + delta, from v = 0, and
    w_new = w + server_learning_rate v. Momentum 0 and learning rate 1 are FedAvg. An update goes on
    acting in later rounds and adds up to server_learning_rate / (1 - momentum) times itself: 10
    times with momentum 0.9. Buffers are averaged.

    Args:
        setup: What every strategy is told.
        server_learning_rate: > 0.
        server_momentum: In [0, 1).

    Source: Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for
    Federated Visual Classification", 2019. The step is Flower's.
    """

    def __init__(
        self, setup: Setup, *, server_learning_rate: float, server_momentum: float
    ) -> None:
        self._optimizer = flower.FedAvgM(
            weighted_by_key=WEIGHT,
            server_learning_rate=server_learning_rate,
            server_momentum=server_momentum,
        )
        super().__init__(setup, inner=self._optimizer, optimises=True)

    def prepare(self, received: ArrayRecord, metrics: Sequence[Metrics]) -> None:
        """Where the step starts."""
        self._optimizer.current_arrays = received

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """v, an array for each parameter, by its position in what travels."""
        vectors = self._optimizer.momentum_vector or []
        return {str(position): np.asarray(vector) for position, vector in enumerate(vectors)}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from it."""
        vectors = [state[str(position)] for position in range(len(state))]
        self._optimizer.momentum_vector = vectors or None
