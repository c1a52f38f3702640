"""At random, in equal parts."""

import numpy as np

from fedkd.data.images import Integers
from fedkd.partitions.drawing import deal, draw_until_enough
from fedkd.partitions.units import Units


def iid(
    units: Units, num_clients: int, min_examples: int, rng: np.random.Generator
) -> list[Integers]:
    """Deal all images at random; sizes differ by at most one, the first clients have more.

    With groups of several images, sizes are as near to that as :func:`deal` makes them, and dealt
    anew until each client has ``min_examples``.

    Args:
        units: Groups and single images, with at least ``num_clients * min_examples`` images.
        num_clients: At least 1.
        min_examples: Images that each client has at least.
        rng: Source of the draws.

    Returns:
        Units of each client, in random order.

    Raises:
        PartitionError: Groups with which ``min_examples`` is practically never reached.
    """
    share, rest = divmod(int(units.sizes.sum()), num_clients)
    sizes = share + (np.arange(num_clients) < rest)
    members = np.arange(len(units))
    return draw_until_enough(
        lambda: (sizes, sizes),
        lambda counts: deal(members, units.sizes, counts, rng),
        units,
        min_examples,
        "partition.name = 'iid'",
        "use fewer clients, or lower min_examples",
    )
