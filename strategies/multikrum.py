"""Multi-Krum: the mean of the clients that are nearest to the others."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedkd.errors import ConfigError, UpdateRefused
from strategies.base import Setup
from strategies.krum_scores import check_cohort, check_trained, nearest
from strategies.uniform import Uniform


class MultiKrum(Uniform):
    """Mean of the ``num_selected`` students with the lowest Krum scores, with equal weights.

    Distances are between parameters; buffers are the mean of those of the same clients. In a
    heterogeneous federation a hospital with rare classes looks like a liar and is left out, round
    after round: its weight 0 is in the results.

    Args:
        setup: What every strategy is told.
        num_malicious: f, clients that may send anything; a round has 2 f + 3 clients at least.
        num_selected: m, at most n - f of n clients of a round: with more, a liar is always in.

    Raises:
        ConfigError: Too few clients a round, or too many selected.

    Source: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent", NeurIPS 2017 (section 4), of students instead of gradients. Scores are Flower's.
    """

    name = "multikrum"
    """As the recipe calls it."""

    def __init__(self, setup: Setup, *, num_malicious: int, num_selected: int) -> None:
        check_cohort(setup, self.name, num_malicious, 2)
        most = setup.cohort - num_malicious
        if num_selected > most:
            raise ConfigError(
                f"strategy.num_selected is {num_selected}; it must be at most {most}, as "
                f"{setup.cohort} clients train in a round and strategy.num_malicious is "
                f"{num_malicious}"
            )
        self._num_malicious, self._num_selected = num_malicious, num_selected
        super().__init__(setup)

    def select(self, updates: Sequence[npt.NDArray[np.float64]]) -> Sequence[int]:
        """Those with the lowest scores."""
        check_trained(len(updates), self.name, self._num_malicious, 2)
        most = len(updates) - self._num_malicious
        if self._num_malicious and self._num_selected > most:
            raise UpdateRefused(
                f"{len(updates)} clients of the round have trained on images; of these "
                f"{self.name} may average {most} with strategy.num_malicious = "
                f"{self._num_malicious}, but strategy.num_selected is {self._num_selected}; lower "
                "it, or where clients failed, set failures.policy = 'retry'"
            )
        return nearest(updates, self._num_malicious, self._num_selected)
