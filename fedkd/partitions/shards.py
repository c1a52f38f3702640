"""Images sorted by class, cut into equal shards, some for each client."""

import numpy as np

from fedkd.data.images import Integers
from fedkd.errors import PartitionError
from fedkd.partitions.drawing import draw_until_enough


def shards(
    labels: Integers,
    num_clients: int,
    shards_per_client: int,
    min_examples: int,
    rng: np.random.Generator,
) -> list[Integers]:
    """Sort by class, cut into ``num_clients * shards_per_client`` shards, deal those at random.

    Clients are nearly equal in size (shards differ by at most one image) and have few classes.
    Within a class the order is drawn. On a long tail, the shards of the head are of one class and
    those of the tail of several. Dealt anew until every client has ``min_examples``.

    Args:
        labels: Class of each image, int64 (num_images,).
        num_clients: At least 1.
        shards_per_client: At least 1.
        min_examples: Images that each client has at least.
        rng: Source of the draws.

    Returns:
        Rows of each client, shard by shard.

    Raises:
        PartitionError: More shards than images; or ``min_examples`` so near to the mean size that
            practically no deal reaches it.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
    Data", AISTATS 2017, section 3 (pathological non-IID MNIST: 2 shards of 300 for 100 clients).
    """
    num_shards = num_clients * shards_per_client
    if num_shards > len(labels):
        raise PartitionError(
            f"num_clients is {num_clients} with partition.shards_per_client = {shards_per_client}: "
            f"that needs {num_shards} training images, one for each shard, there are "
            f"{len(labels)}; use fewer clients or shards"
        )
    ordered = [rng.permutation(np.flatnonzero(labels == number)) for number in np.unique(labels)]
    pieces = np.array_split(np.concatenate(ordered), num_shards)
    piece_sizes = np.array([len(piece) for piece in pieces])

    def draw() -> tuple[Integers, Integers]:
        dealt = rng.permutation(num_shards).reshape(num_clients, shards_per_client)
        return dealt, piece_sizes[dealt].sum(axis=1)

    dealt = draw_until_enough(
        draw,
        min_examples,
        f"partition.shards_per_client = {shards_per_client}",
        "lower min_examples or use fewer shards_per_client",
    )
    return [np.concatenate([pieces[number] for number in own]) for own in dealt]
