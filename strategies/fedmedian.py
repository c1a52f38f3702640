"""FedMedian: the median of the clients, entry by entry."""

import flwr.serverapp.strategy as flower

from strategies.base import WEIGHT, Setup
from strategies.uniform import Uniform


class FedMedian(Uniform):
    """Each number of the student is the median over clients, of the two middle ones their mean.

    Every client has one vote, whatever its size, and nearly half of them may send anything: the
    reported weights are votes, not shares of a sum. With one or two clients it is ``uniform``.
    Buffers follow the same rule; a median of variances is a variance.

    Source: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    ICML 2018 (algorithm 1, option I), of students instead of gradients. The median is Flower's.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, inner=flower.FedMedian(weighted_by_key=WEIGHT))
