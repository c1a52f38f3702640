"""Clients of unequal size with the same mix of classes."""

import numpy as np

from fedkd.data.images import Integers
from fedkd.partitions.drawing import deal, draw_until_enough
from fedkd.partitions.units import Units


def quantity_skew(
    units: Units, num_clients: int, alpha: float, min_examples: int, rng: np.random.Generator
) -> list[Integers]:
    """Deal all images at random to clients whose sizes are drawn.

    Shares ~ Dirichlet(alpha, ..., alpha) over the clients, sizes ~ Multinomial(images, shares),
    drawn anew until every client has ``min_examples``. Labels are not looked at. With groups of
    several images, sizes are met as nearly as :func:`fedkd.partitions.drawing.deal` makes them.

    Args:
        units: Groups and single images, with at least ``num_clients * min_examples`` images.
        num_clients: At least 1.
        alpha: Concentration, > 0: 0.1 = very unequal, 100 = nearly equal sizes.
        min_examples: Images that each client has at least.
        rng: Source of the draws.

    Returns:
        Units of each client, in random order.

    Raises:
        PartitionError: A skew under which ``min_examples`` is practically never reached.

    Source: Li et al., "Federated Learning on Non-IID Data Silos: An Experimental Study", ICDE 2022
    (quantity skew, q ~ Dir(beta)). Differs: sizes are drawn rather than rounded (our choice, as in
    ``dirichlet``).
    """
    members, num_images = np.arange(len(units)), int(units.sizes.sum())

    def draw() -> tuple[Integers, Integers]:
        shares = rng.dirichlet(np.full(num_clients, alpha))
        sizes = rng.multinomial(num_images, shares)
        return sizes, sizes

    return draw_until_enough(
        draw,
        lambda counts: deal(members, units.sizes, counts, rng),
        units,
        min_examples,
        f"partition.alpha = {alpha}",
        "raise alpha, use fewer clients, or lower min_examples",
    )
