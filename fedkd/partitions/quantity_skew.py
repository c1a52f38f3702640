"""Clients of unequal size with the same mix of classes."""

import numpy as np

from fedkd.data.images import Integers
from fedkd.partitions.drawing import draw_until_enough


def quantity_skew(
    num_images: int, num_clients: int, alpha: float, min_examples: int, rng: np.random.Generator
) -> list[Integers]:
    """Deal all images at random to clients whose sizes are drawn.

    Shares ~ Dirichlet(alpha, ..., alpha) over the clients, sizes ~ Multinomial(images, shares),
    drawn anew until every client has ``min_examples``. Labels are not looked at.

    Args:
        num_images: At least ``num_clients * min_examples``.
        num_clients: At least 1.
        alpha: Concentration, > 0: 0.1 = very unequal, 100 = nearly equal sizes.
        min_examples: Images that each client has at least.
        rng: Source of the draws.

    Returns:
        Rows of each client, in random order.

    Raises:
        PartitionError: A skew under which ``min_examples`` is practically never reached.

    Source: Li et al., "Federated Learning on Non-IID Data Silos: An Experimental Study", ICDE 2022
    (quantity skew, q ~ Dir(beta)). Differs: sizes are drawn rather than rounded (our choice, as in
    ``dirichlet``).
    """

    def draw() -> tuple[Integers, Integers]:
        shares = rng.dirichlet(np.full(num_clients, alpha))
        sizes = rng.multinomial(num_images, shares)
        return sizes, sizes

    sizes = draw_until_enough(
        draw,
        min_examples,
        f"partition.alpha = {alpha}",
        "raise alpha, use fewer clients, or lower min_examples",
    )
    return np.split(rng.permutation(num_images), np.cumsum(sizes)[:-1])
