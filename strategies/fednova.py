"""FedNova: updates are normalised by what the clients' local steps add up to."""

from collections.abc import Sequence

import flwr.serverapp.strategy as flower
from flwr.app import ArrayRecord

from fedkd import wire
from strategies.base import WEIGHT, Metrics, SeededStrategy, Setup


def accumulated(num_steps: int, momentum: float = 0.0) -> float:
    """What one gradient that never changes would add up to over local steps, in units of a step.

    |a|_1 of the paper: tau for plain SGD. For momentum rho it has heavy-ball momentum; here SGD is
    Nesterov's as torch has it (step g + rho b, with b <- rho b + g from b = 0), in which the
    gradient of the j-th step from the end counts 1 + rho + ... + rho^j, so that

        |a|_1 = (tau - rho^2 (1 - rho^tau) / (1 - rho)) / (1 - rho).

    Args:
        num_steps: tau, >= 0.
        momentum: rho, in [0, 1), of a buffer that starts at 0.
    """
    rho = momentum
    return (num_steps - rho**2 * (1 - rho**num_steps) / (1 - rho)) / (1 - rho)


class FedNova(SeededStrategy):
    """Average of normalised updates: who makes more local steps has no more say for it.

    w_new = w + tau_eff sum_k p_k (w_k - w) / a_k, where p_k is the client's share of the images,
    a_k its :func:`accumulated` steps and tau_eff = sum_k p_k a_k. With equal a_k it is FedAvg, to
    the bit. Only ratios of a_k matter. Reported weights are p_k / a_k, scaled to sum to 1: the
    shares of the direction, whose length is then that of an average client.

    The momentum counts in a_k where it starts afresh in every round
    (``training.keep_optimizer_state = false``). Where it is kept, a gradient goes on acting in the
    client's next rounds and adds up to 1 / (1 - rho) in the end, whichever step it was of: a_k is
    then proportional to the number of steps, which is what is taken. Adam's steps have no such sum
    in the paper; the number of steps is taken, as each is about as long as another: our choice.
    Weight decay and clipping of gradients are not reckoned with. Buffers are averaged by images.

    Source: Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
    Optimization", NeurIPS 2020 (eq. 6 to 8; tau_eff as in its experiments). Differs: Nesterov's
    momentum, and Adam, as above. Average and step are those of Flower's FedAvgM without momentum.
    """

    def __init__(self, setup: Setup) -> None:
        self._optimizer = flower.FedAvgM(weighted_by_key=WEIGHT)
        super().__init__(setup, inner=self._optimizer, optimises=True)

    def weigh(self, metrics: Sequence[Metrics], server_round: int) -> list[float]:
        """Images by accumulated steps; these in units of the largest, so that 1 divides exactly."""
        steps = self._steps(metrics)
        return [
            m[wire.NUM_EXAMPLES] / (a / max(steps)) if a else 0.0
            for m, a in zip(metrics, steps, strict=True)
        ]

    def prepare(self, received: ArrayRecord, metrics: Sequence[Metrics]) -> None:
        """Where the step starts, and how long it is: tau_eff times the sum of the weights."""
        trained = [m for m in metrics if m[wire.NUM_EXAMPLES] and m[wire.NUM_STEPS]]
        steps, images = self._steps(trained), [m[wire.NUM_EXAMPLES] for m in trained]
        total = sum(images)
        effective = sum(n * a for n, a in zip(images, steps, strict=True)) / total
        directions = sum(n / a for n, a in zip(images, steps, strict=True)) / total
        self._optimizer.current_arrays = received
        self._optimizer.server_learning_rate = effective * directions
        # Without it Flower averages and steps nowhere.
        self._optimizer.server_opt = len(set(steps)) > 1

    def _steps(self, metrics: Sequence[Metrics]) -> list[float]:
        return [accumulated(m[wire.NUM_STEPS], self.setup.momentum) for m in metrics]
