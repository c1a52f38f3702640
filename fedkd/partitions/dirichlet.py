"""Each class in random, unequal shares."""

import numpy as np

from fedkd.data.images import Integers
from fedkd.partitions.drawing import deal_by_class, draw_until_enough
from fedkd.partitions.units import Units


def dirichlet(
    units: Units,
    num_clients: int,
    alpha: float,
    min_examples: int,
    rng: np.random.Generator,
    where: str = "",
) -> list[Integers]:
    """Give each class to the clients in Dirichlet shares.

    Per class, shares ~ Dirichlet(alpha, ..., alpha) over the clients and counts ~
    Multinomial(images of the class, shares); which images a client gets is a random choice. Drawn
    anew until every client has ``min_examples``. Clients are not balanced in size. With groups of
    several images, counts are met as nearly as :func:`fedkd.partitions.drawing.deal` makes them.

    Args:
        units: Groups and single images, by whose class they are dealt.
        num_clients: At least 1.
        alpha: Concentration, > 0: 0.1 = very skewed, 100 = nearly iid.
        min_examples: Images that each client has at least.
        rng: Source of the draws.
        where: Which images these are, such as ``" of site vienna"``, for the error.

    Returns:
        Units of each client, class by class.

    Raises:
        PartitionError: A skew under which ``min_examples`` is practically never reached.

    Source: Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML
    2019 (heterogeneous partition). Differs: counts are drawn (our choice). Cutting each class at
    rounded-down cumulative shares, as flwr-datasets 0.6.1 does, leaves what is over of every class
    to the last client: in 97 to 100 % of our trial draws it had the rarest class (10 images), which
    other clients had in 19 to 71 %, and a class with one image is always its own.
    """
    totals = np.bincount(units.labels, units.sizes).astype(np.int64)
    totals = totals[totals > 0]

    def draw() -> tuple[Integers, Integers]:
        shares = rng.dirichlet(np.full(num_clients, alpha), size=len(totals))
        counts = rng.multinomial(totals, shares)
        return counts, counts.sum(axis=0)

    return draw_until_enough(
        draw,
        lambda counts: deal_by_class(units, counts, rng),
        units,
        min_examples,
        f"partition.alpha = {alpha}{where}",
        "raise alpha, use fewer clients, or lower min_examples",
    )
