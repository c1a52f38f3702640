"""Images sorted by class, cut into equal shards, some for each client."""

import numpy as np

from fedkd.data.images import Integers
from fedkd.errors import PartitionError
from fedkd.partitions.drawing import draw_until_enough
from fedkd.partitions.units import Units


def shards(
    units: Units,
    num_clients: int,
    shards_per_client: int,
    min_examples: int,
    rng: np.random.Generator,
) -> list[Integers]:
    """Sort by class, cut into ``num_clients * shards_per_client`` shards, deal those at random.

    Clients are nearly equal in size (shards differ by at most one image) and have few classes.
    Within a class the order is drawn. On a long tail, the shards of the head are of one class and
    those of the tail of several. Dealt anew until every client has ``min_examples``. With groups of
    several images, the cuts are made between units, where nearest to equal shards (our choice), and
    no shard is empty.

    Args:
        units: Groups and single images, by whose class they are sorted.
        num_clients: At least 1.
        shards_per_client: At least 1.
        min_examples: Images that each client has at least.
        rng: Source of the draws.

    Returns:
        Units of each client, shard by shard.

    Raises:
        PartitionError: More shards than images or units; or ``min_examples`` so near to the mean
            size that practically no deal reaches it.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
    Data", AISTATS 2017, section 3 (pathological non-IID MNIST: 2 shards of 300 for 100 clients).
    """
    num_shards = num_clients * shards_per_client
    if num_shards > len(units):
        things = "training images"
        if units.name_of_largest:
            things = "lesions or patients (partition.keep_groups)"
        raise PartitionError(
            f"num_clients is {num_clients} with partition.shards_per_client = {shards_per_client}: "
            f"that needs {num_shards} {things}, one for each shard, there are {len(units)}; use "
            "fewer clients or shards"
        )
    ordered = np.concatenate(
        [
            rng.permutation(np.flatnonzero(units.labels == number))
            for number in np.unique(units.labels)
        ]
    )
    pieces = _cut(ordered, units.sizes[ordered], num_shards)
    piece_sizes = np.array([units.sizes[piece].sum() for piece in pieces])

    def draw() -> tuple[Integers, Integers]:
        dealt = rng.permutation(num_shards).reshape(num_clients, shards_per_client)
        return dealt, piece_sizes[dealt].sum(axis=1)

    return draw_until_enough(
        draw,
        lambda dealt: [np.concatenate([pieces[number] for number in own]) for own in dealt],
        units,
        min_examples,
        f"partition.shards_per_client = {shards_per_client}",
        "lower min_examples or use fewer shards_per_client",
    )


def _cut(ordered: Integers, sizes: Integers, num_pieces: int) -> list[Integers]:
    """Pieces of one unit at least, cut where nearest to where ``np.array_split`` cuts images."""
    ends = np.concatenate([[0], np.cumsum(sizes)])
    share, rest = divmod(int(ends[-1]), num_pieces)
    before = np.arange(1, num_pieces)
    wanted = before * share + np.minimum(before, rest)
    right = np.searchsorted(ends, wanted)
    cuts = right - (wanted - ends[right - 1] <= ends[right] - wanted)
    # Each cut has a unit for every piece before it and for every piece behind it.
    free = np.maximum.accumulate(cuts - before).clip(0, len(ordered) - num_pieces)
    return np.split(ordered, free + before)
