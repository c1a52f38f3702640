"""FedTrimmedAvg: the mean of the clients without the extreme ones, entry by entry."""

import logging
import math
from collections.abc import Sequence

import flwr.serverapp.strategy as flower

from fedkd import wire
from strategies.base import WEIGHT, Metrics, Setup
from strategies.uniform import Uniform

logger = logging.getLogger(__name__)


class FedTrimmedAvg(Uniform):
    """Each number of the student is the mean over clients, without the lowest and highest ones.

    At each end, trim times the number of clients are left out, rounded down; if that is none, it is
    ``uniform``, and a warning says so. Every client has one vote, whatever its size: the reported
    weights are votes, not shares of a sum. Buffers follow the same rule.

    Args:
        setup: What every strategy is told.
        trim: In [0, 0.5).

    Source: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    ICML 2018 (algorithm 1, option II), of students instead of gradients. The mean is Flower's.
    """

    def __init__(self, setup: Setup, *, trim: float) -> None:
        if trim and not int(trim * setup.cohort):
            # Rounded up, as 0.3333 of 3 clients is nobody.
            least = math.ceil(1e4 / setup.cohort) / 1e4
            logger.warning(
                "strategy.trim = %g of %d clients leaves nobody out, so that fedtrimmedavg is "
                "uniform; %s",
                trim,
                setup.cohort,
                f"{least:g} would leave out one at each end"
                if setup.cohort > 2
                else "it takes 3 clients a round to leave out one at each end",
            )
        self._trim = trim
        inner = flower.FedTrimmedAvg(weighted_by_key=WEIGHT, beta=trim)
        super().__init__(setup, inner=inner)

    def weigh(self, metrics: Sequence[Metrics], server_round: int) -> list[float]:
        """One vote each; a warning where so many clients are missing that nobody is cut off."""
        num_trained = sum(bool(m[wire.NUM_EXAMPLES]) for m in metrics)
        if int(self._trim * self.setup.cohort) and not int(self._trim * num_trained):
            logger.warning(
                "round %d: strategy.trim = %g of the %d clients that are left cuts nobody off; the "
                "round is averaged like uniform",
                server_round,
                self._trim,
                num_trained,
            )
        return super().weigh(metrics, server_round)
