"""Who is near to the others: Krum's choice of clients, made by Flower's own code.

It is no public name of Flower's: this file alone touches it. Flower's strategies call it with whole
weights in float32, where |x|^2 + |y|^2 - 2 x.y cancels, as students of one round differ by a
thousandth of their norm; here it gets the updates in float64, which have the same distances.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, RecordDict
from flwr.serverapp.strategy.multikrum import select_multikrum

from fedkd.errors import ConfigError, UpdateRefused
from strategies.arrays import HeldArray
from strategies.base import Setup


def nearest(
    updates: Sequence[npt.NDArray[np.float64]], num_malicious: int, num_selected: int
) -> list[int]:
    """Positions of the updates with the lowest Krum scores, in ascending order.

    The score of an update is the sum of squared distances to its n - num_malicious - 2 nearest
    others. Of equal scores either may be taken. Costs 8 bytes x parameters x clients, about twice.

    Args:
        updates: Float64 (num_parameters,) each; n of them.
        num_malicious: f, with 2 f + 3 <= n.
        num_selected: How many, at most n.

    Source: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent", NeurIPS 2017 (section 4).
    """
    contents = [
        RecordDict({"update": ArrayRecord({"update": HeldArray(update)})}) for update in updates
    ]
    chosen = select_multikrum(contents, num_malicious, num_selected)
    positions = {id(content): number for number, content in enumerate(contents)}
    return sorted(positions[id(content)] for content in chosen)


def check_cohort(setup: Setup, name: str, num_malicious: int, factor: int) -> None:
    """Refuse a federation in which a round has too few clients.

    Raises:
        ConfigError: Fewer than factor x num_malicious + 3.
    """
    needed = factor * num_malicious + 3
    if setup.cohort < needed:
        raise ConfigError(
            f"strategy.num_malicious is {num_malicious} and {setup.cohort} clients train in a "
            f"round, but {name} needs {factor} x num_malicious + 3 = {needed} of them; raise "
            "num_clients or strategy.fraction_train, lower num_malicious, or choose another "
            "strategy, such as fedmedian"
        )


def check_trained(num_trained: int, name: str, num_malicious: int, factor: int) -> None:
    """Refuse a round in which too few clients have seen an image.

    Raises:
        UpdateRefused: Fewer than factor x num_malicious + 3.
    """
    needed = factor * num_malicious + 3
    if num_trained < needed:
        raise UpdateRefused(
            f"{num_trained} clients of the round have trained on images, but {name} needs "
            f"{needed}; raise partition.min_examples, or lower training.batch_size where "
            "training.drop_last leaves clients without a batch; where clients failed, set "
            "failures.policy = 'retry'"
        )
