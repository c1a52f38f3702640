"""Bulyan: among the clients nearest to the others, the mean of the middle ones, entry by entry."""

from collections.abc import Sequence

import flwr.serverapp.strategy as flower
import numpy as np
import numpy.typing as npt
from flwr.app import RecordDict

from strategies.base import WEIGHT, Setup
from strategies.krum_scores import check_cohort, check_trained, nearest
from strategies.uniform import Uniform


class Bulyan(Uniform):
    """Krum's choice first, then each number is a mean of the values nearest to their median.

    Of n clients, the n - 2 f with the lowest Krum scores remain, and of these the n - 4 f values
    nearest to the median are averaged, number by number. f = 0 is ``uniform``. Buffers follow the
    same rule. The reported weights are equal votes, not shares of a sum: which client is left out
    differs from number to number.

    Args:
        setup: What every strategy is told.
        num_malicious: f, clients that may send anything; a round has 4 f + 3 clients at least.

    Raises:
        ConfigError: Too few clients a round.

    Source: El Mhamdi et al., "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML
    2018 (section 4), of students instead of gradients. The arithmetic is Flower's. Differs, as
    Flower does: the n - 2 f clients are chosen at once, not one by one with scores made anew.
    """

    def __init__(self, setup: Setup, *, num_malicious: int) -> None:
        check_cohort(setup, "bulyan", num_malicious, 4)
        self._num_malicious = num_malicious
        self._chosen: list[int] = []
        inner = flower.Bulyan(
            weighted_by_key=WEIGHT, num_malicious_nodes=num_malicious, selection_rule=self._choose
        )
        super().__init__(setup, inner=inner)

    def select(self, updates: Sequence[npt.NDArray[np.float64]]) -> Sequence[int]:
        """All of them: Flower's Bulyan counts clients; it is told the chosen ones then."""
        check_trained(len(updates), "bulyan", self._num_malicious, 4)
        self._chosen = nearest(updates, self._num_malicious, len(updates) - 2 * self._num_malicious)
        return range(len(updates))

    def _choose(self, contents: list[RecordDict], _f: int, _theta: int) -> list[RecordDict]:
        return [contents[number] for number in self._chosen]
