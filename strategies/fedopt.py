"""What the adaptive optimisers on the server share: Flower's steps from the received student."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord
from flwr.serverapp.strategy.fedopt import FedOpt as FlowersFedOpt

from strategies.base import Metrics, Setup
from strategies.fedavg import FedAvg

_MOMENTS = ("m_t", "v_t")


class FedOpt(FedAvg):
    """The average update, by numbers of images, is a gradient that the server descends adaptively.

    With delta the average minus the received student, m its running mean and v its running or
    summed square, w_new = w + eta m / (sqrt(v) + tau), all entry by entry. Buffers are averaged.

    A step is about eta for every weight, however far the clients moved it (less, where they moved
    it less than tau): eta must fit the distance that clients cover in a round.

    Args:
        setup: What every strategy is told.
        optimizer: Flower's, weighing by the key ``"weight"``. Its eta is ``server_learning_rate``,
            > 0; its tau, > 0, is added to the root: a large one means plain averaging with the
            factor eta / tau.
    """

    def __init__(self, setup: Setup, optimizer: FlowersFedOpt) -> None:
        self._optimizer = optimizer
        super().__init__(setup, inner=optimizer, optimises=True)

    def prepare(self, received: ArrayRecord, metrics: Sequence[Metrics]) -> None:
        """Where the step starts."""
        self._optimizer.current_arrays = {name: array.numpy() for name, array in received.items()}

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """The moments of every parameter: ``m_t/<name>`` and ``v_t/<name>``."""
        return {
            f"{moment}/{name}": np.asarray(values)
            for moment in _MOMENTS
            for name, values in (getattr(self._optimizer, moment) or {}).items()
        }

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from it."""
        for moment in _MOMENTS:
            named = {
                name.removeprefix(f"{moment}/"): values
                for name, values in state.items()
                if name.startswith(f"{moment}/")
            }
            setattr(self._optimizer, moment, named or None)
