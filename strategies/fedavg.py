"""FedAvg: clients weigh by the number of images that they trained on."""

from collections.abc import Sequence

from fedkd import wire
from strategies.base import Metrics, SeededStrategy


class FedAvg(SeededStrategy):
    """Average of the students, weighted by the images of one local epoch.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
    Data", AISTATS 2017 (algorithm 1). The sum is Flower's.
    """

    def weigh(self, metrics: Sequence[Metrics], server_round: int) -> list[float]:
        """Images that one local epoch sees."""
        return [float(m[wire.NUM_EXAMPLES]) for m in metrics]
