"""Class-balanced aggregation: every class has one vote, shared by those who have its images."""

from collections.abc import Sequence

import numpy as np

from fedkd import wire
from strategies.base import Metrics, SeededStrategy


class ClassBalanced(SeededStrategy):
    """Average of the students, weighted by each client's shares of the classes.

    weight_k = sum over classes c of n_kc / n_c, where n_kc are the images of class c at client k
    and n_c those at all clients of the round. The weights sum to the number of classes present. A
    class that nobody of the round has gives no vote. A class that one hospital alone has gives it a
    whole vote, even for a single image: where classes are rare and kept in one place, that hospital
    weighs as much as one with all images of a common class, and its noise with it. With classes
    spread alike over clients, it is FedAvg.

    It weighs students, not losses: what a student learned of a class is not told apart from the
    rest of it. Our choice, without a source; it is meant as a simple rival of mas.
    """

    def needs(self, server_round: int) -> tuple[str, ...]:
        """Images per class."""
        return (wire.CLASS_COUNTS,)

    def weigh(self, metrics: Sequence[Metrics], server_round: int) -> list[float]:
        """Sum of the client's shares of the classes."""
        # Images that no epoch saw (num_examples 0) are nobody's: their class goes to the others.
        counts = np.array([m[wire.CLASS_COUNTS] for m in metrics], np.float64)
        counts *= np.array([m[wire.NUM_EXAMPLES] > 0 for m in metrics])[:, None]
        weights: list[float] = (counts / np.maximum(counts.sum(axis=0), 1)).sum(axis=1).tolist()
        return weights
