"""MAS: model aggregation via self-supervised priors, clients weighed by a robust factor."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedkd import wire
from strategies.base import Metrics, SeededStrategy

Floats = npt.NDArray[np.float64]


def robust_factor(class_scores: Floats, class_losses: Floats, invert_losses: bool = False) -> float:
    """Agreement of where the received student was far from the teacher and where training was hard.

    With a and c scaled to sum to 1, R = sum of a_k c_k over the classes with a_k not 0. It is about
    1 / (number of classes that the client has), so clients with few classes weigh more.

    Args:
        class_scores: a, loss per image of each class of the received student, >= 0, (num_classes,).
            0 for a class that the client lacks or that was not seen.
        class_losses: c, the same while training, (num_classes,). Its scale cancels.
        invert_losses: Replace c by 1/c in the scored classes, before scaling. A scored class that
            was never trained on (c = 0) is left out of the sum, as it is without inversion.

    Returns:
        R between 0 and 1; 1 for a client with one class, 0 if all scores or all losses are 0.
    """
    scored = class_scores != 0
    if invert_losses:
        trained = scored & (class_losses != 0)
        class_losses = np.divide(1.0, class_losses, out=class_losses.copy(), where=trained)
    totals = class_scores.sum(), class_losses.sum()
    if totals[0] == 0 or totals[1] == 0:
        return 0.0
    shares = (class_scores / totals[0]) * (class_losses / totals[1])
    return float(shares[scored].sum())


def robust_factors(metrics: Sequence[Metrics], invert_losses: bool = False) -> list[float]:
    """The robust factor of each client, from the sums that it sent."""
    factors = []
    for m in metrics:
        # An absent class has no score and no loss: 0 / 1 keeps it at 0.
        counts = np.maximum(np.asarray(m[wire.CLASS_COUNTS], np.float64), 1)
        # Rounding can leave 2 - 2 cos just below 0.
        scores = np.maximum(np.asarray(m[wire.CLASS_SCORES], np.float64), 0) / counts
        losses = np.maximum(np.asarray(m[wire.CLASS_LOSSES], np.float64), 0) / counts
        factors.append(robust_factor(scores, losses, invert_losses))
    return factors


class MAS(SeededStrategy):
    """Average of the students, weighted by the clients' robust factors alone.

    Numbers of images play no role. Classes that a client lacks are left out of its factor, which is
    about 1 / (number of classes that it has): clients with few classes weigh more. If every factor
    is 0 (all students already agree with the teacher), clients weigh equally.

    Source: Elbatel et al., "Federated Model Aggregation via Self-Supervised Priors for Highly
    Imbalanced Medical Image Classification", DeCaF 2023, as the Fed-MAS code computes it. Differs:
    the teacher is always in eval mode.
    """

    invert_losses = False
    """Whether class losses are inverted in the robust factor."""

    def weigh(self, metrics: Sequence[Metrics], server_round: int) -> list[float]:
        """Robust factor of each client."""
        factors = robust_factors(metrics, self.invert_losses)
        return factors if any(factors) else [1.0] * len(factors)

    def scores_classes(self, server_round: int) -> bool:
        """In every round."""
        return True
