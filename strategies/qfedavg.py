"""q-FedAvg: clients with a high loss weigh more, for fairness."""

from collections.abc import Iterable, Sequence

import flwr.serverapp.strategy as flower
from flwr.app import Array, ArrayRecord, Message, MetricRecord

from fedkd import wire
from strategies.arrays import HeldArray
from strategies.base import WEIGHT, Metrics, SeededStrategy, Setup

LOSS = "loss"
SMALLEST_LOSS = 1e-10
"""Flower adds it to every loss."""


class QFedAvg(SeededStrategy):
    """Updates weigh by F_k^q, F_k being the client's loss; numbers of images play no role.

    w_new = w + sum_k F_k^q L (w_k - w) / sum_k h_k, h_k = q F_k^(q-1) L^2 |w_k - w|^2 + L F_k^q,
    L = 1 / client_learning_rate. q = 0 is strategy uniform. With q > 0 the step is shorter than the
    average update, by the factor 1 / (1 + mean of q L |w_k - w|^2 / F_k, with weights F_k^q), which
    is small where clients move far: a larger client_learning_rate lengthens it. Reported weights
    are F_k^q, scaled to sum to 1. Buffers are averaged by images: a shorter step does not make them
    the statistics of fewer images.

    Args:
        setup: What every strategy is told.
        q: >= 0.
        client_learning_rate: > 0.

    Source: Li et al., "Fair Resource Allocation in Federated Learning", ICLR 2020 (algorithm 2).
    The step is Flower's. Differs: F_k is the mean of what the client minimised while it trained,
    all terms of the objective together, where the paper has the loss of the received student on the
    client's images, which would cost another pass.
    """

    def __init__(self, setup: Setup, *, q: float, client_learning_rate: float) -> None:
        self._q = q
        self._optimizer = _Copying(
            weighted_by_key=WEIGHT,
            q=q,
            client_learning_rate=client_learning_rate,
            train_loss_key=LOSS,
        )
        super().__init__(setup, inner=self._optimizer, optimises=True)

    def weigh(self, metrics: Sequence[Metrics], server_round: int) -> list[float]:
        """The losses to the power of q."""
        return [float((_loss(m) + SMALLEST_LOSS) ** self._q) for m in metrics]

    def prepare(self, received: ArrayRecord, metrics: Sequence[Metrics]) -> None:
        """Where the step starts."""
        self._optimizer.current_arrays = received

    def shown(self, metrics: Metrics) -> dict[str, float]:
        """The loss."""
        return {LOSS: _loss(metrics)}


class _Copying(flower.QFedAvg):
    """Flower's q-FedAvg overwrites the replies, which are read-only here."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        for reply in replies:
            arrays = reply.content.array_records[wire.ARRAYS]
            for name, array in list(arrays.items()):
                copied: Array = HeldArray(array.numpy().copy())
                arrays[name] = copied
        return super().aggregate_train(server_round, replies)


def _loss(metrics: Metrics) -> float:
    """Mean of the client's loss over all images that it has seen in the round."""
    loss: float = metrics.get(wire.SUM + "loss", 0.0) / max(metrics[wire.NUM_SEEN], 1)
    # A power of a negative number may be none: rounding can leave a loss just below 0.
    return max(loss, 0.0)
