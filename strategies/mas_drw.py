"""MAS with deferred re-weighting (DRW): FedAvg first, robust factors in the last rounds."""

from collections.abc import Sequence

from fedkd.losses.effective_number import is_reweighted
from strategies.base import Metrics
from strategies.fedavg import FedAvg
from strategies.mas import robust_factors

BETA = 0.9999
SMALLEST_SHARE = 1e-10


class MASDRW(FedAvg):
    """FedAvg, and in the last fifth of the rounds numbers of images times e, from robust factors R.

    With u_k = (1/R_k) / sum of all 1/R and e_k = (1 - beta) / (1 - beta^u_k), beta = 0.9999. As u
    is at most 1, e is 1/u up to a relative 1e-4: the two inversions cancel, and the weights end up
    proportional to num_examples * R. R is about 1 / (number of classes that the client has), so
    clients with few classes weigh more than in FedAvg. A single round is never re-weighted.

    Our choice, as the source divides by 0: R_k = 0 means weight 0 (the limit of num_examples * R),
    and if every R is 0, clients weigh as in FedAvg.

    Source: ``mas_DRW`` of the Fed-MAS code (Elbatel et al., DeCaF 2023). Differs: the teacher is
    always in eval mode, and classes are scored only in the rounds that use the factor.
    """

    def weigh(self, metrics: Sequence[Metrics], server_round: int) -> list[float]:
        """Images of one local epoch, times e once re-weighting has begun."""
        num_examples = super().weigh(metrics, server_round)
        if not self.scores_classes(server_round):
            return num_examples
        factors = robust_factors(metrics)
        total = sum(1 / factor for factor in factors if factor)
        if not total:
            return num_examples
        return [
            num * _effective_number_weight(1 / factor / total) if factor else 0.0
            for num, factor in zip(num_examples, factors, strict=True)
        ]

    def scores_classes(self, server_round: int) -> bool:
        """In the rounds that are re-weighted."""
        return is_reweighted(server_round, self.num_rounds)


def _effective_number_weight(share: float) -> float:
    # As the source writes it: expm1 would be exact, and miss its figures in the eleventh digit.
    # Below the smallest share the difference cancels down to 0.
    power: float = BETA ** max(share, SMALLEST_SHARE)
    return (1 - BETA) / (1 - power)
