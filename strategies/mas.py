"""MAS: model aggregation via self-supervised priors, clients weighed by a robust factor."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedkd import wire
from strategies.base import Metrics, SeededStrategy

Floats = npt.NDArray[np.float64]


def robust_factor(class_scores: Floats, class_losses: Floats) -> float:
    """Agreement of where the received student was far from the teacher and where training was hard.

    With a and c scaled to sum to 1, R = sum of a_k c_k over the classes with a_k not 0. It is about
    1 / (number of classes that the client has), so clients with few classes weigh more.

    Args:
        class_scores: a, loss per image of each class of the received student, (num_classes,).
        class_losses: c, the same while training, (num_classes,). Its scale cancels.

    Returns:
        R between 0 and 1; 1 for a client with one class, 0 if all scores or all losses are 0.
    """
    scored = class_scores != 0
    totals = class_scores.sum(), class_losses.sum()
    if totals[0] == 0 or totals[1] == 0:
        return 0.0
    shares = (class_scores / totals[0]) * (class_losses / totals[1])
    return float(shares[scored].sum())


class MAS(SeededStrategy):
    """Average of the students, weighted by the clients' robust factors alone.

    Numbers of images play no role. Classes that a client lacks are left out of its factor. If every
    factor is 0 (all students already agree with the teacher), clients weigh equally.

    Source: Elbatel et al., "Federated Model Aggregation via Self-Supervised Priors for Highly
    Imbalanced Medical Image Classification", DeCaF 2023, as the Fed-MAS code computes it. Differs:
    the teacher is always in eval mode.
    """

    score_classes = True

    def weigh(self, metrics: Sequence[Metrics]) -> list[float]:
        """Robust factor of each client."""
        factors = []
        for m in metrics:
            # An absent class has no score and no loss: 0 / 1 keeps it at 0.
            counts = np.maximum(np.asarray(m[wire.CLASS_COUNTS], np.float64), 1)
            scores = np.asarray(m[wire.CLASS_SCORES], np.float64) / counts
            losses = np.asarray(m[wire.CLASS_LOSSES], np.float64) / counts
            factors.append(robust_factor(scores, losses))
        return factors if any(factors) else [1.0] * len(factors)
