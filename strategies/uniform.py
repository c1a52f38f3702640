"""Uniform: every client has the same weight."""

from collections.abc import Sequence

from strategies.base import Metrics, SeededStrategy


class Uniform(SeededStrategy):
    """Average of the students in which clients weigh equally, whatever their size.

    It is the rule of no paper: FedAvg for a user to whom hospitals matter rather than images, and
    what fedmedian, fedtrimmedavg, multikrum and bulyan are when they leave nobody out.
    """

    def weigh(self, metrics: Sequence[Metrics], server_round: int) -> list[float]:
        """1 each."""
        return [1.0] * len(metrics)
