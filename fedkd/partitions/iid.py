"""At random, in equal parts."""

import numpy as np

from fedkd.data.images import Integers


def iid(num_images: int, num_clients: int, rng: np.random.Generator) -> list[Integers]:
    """Deal all images at random; sizes differ by at most one, the first clients have more.

    Args:
        num_images: At least ``num_clients``.
        num_clients: At least 1.
        rng: Source of the draws.

    Returns:
        Rows of each client, in random order.
    """
    return np.array_split(rng.permutation(num_images), num_clients)
