"""What the drawn partitions share: drawing anew until every client has enough, and dealing out."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from fedkd.data.images import Integers
from fedkd.errors import PartitionError

# Redrawing costs microseconds; a request that fails this often has a chance of about 1 in 1000 at
# best, and its clients would be drawn from an odd corner of the distribution.
MAX_DRAWS = 1000

Drawn = TypeVar("Drawn")


def draw_until_enough(
    draw: Callable[[], tuple[Drawn, Integers]], min_examples: int, request: str, advice: str
) -> Drawn:
    """Draw at most ``MAX_DRAWS`` times, until every client has ``min_examples`` images.

    Args:
        draw: One try: what is drawn, and the number of images of each client, int (num_clients,).
        min_examples: Images that each client has at least.
        request: Setting that makes small clients, for the error.
        advice: What to change, for the error.

    Returns:
        The first try that is good enough.

    Raises:
        PartitionError: None was.
    """
    best = 0
    for _ in range(MAX_DRAWS):
        drawn, sizes = draw()
        best = max(best, int(sizes.min()))
        if best >= min_examples:
            return drawn
    raise PartitionError(
        f"no draw of {MAX_DRAWS} gave each of {len(sizes)} clients partition.min_examples = "
        f"{min_examples} of the {sizes.sum()} training images at {request} (best smallest client: "
        f"{best}); {advice}"
    )


def deal(labels: Integers, counts: Integers, rng: np.random.Generator) -> list[Integers]:
    """Give each client its number of images of each class; which ones is drawn.

    Args:
        labels: Class of each image, int64 (num_images,).
        counts: Images per class that occurs (ascending) and client, int64 (num_present_classes,
            num_clients); rows add up to the images of the class.
        rng: Source of the draws.

    Returns:
        Rows of each client, class by class.
    """
    parts: list[list[Integers]] = [[] for _ in range(counts.shape[1])]
    for number, row in zip(np.unique(labels), counts, strict=True):
        shuffled = rng.permutation(np.flatnonzero(labels == number))
        for own, rows in zip(parts, np.split(shuffled, np.cumsum(row)[:-1]), strict=True):
            own.append(rows)
    return [np.concatenate(own) for own in parts]
