"""Every client has the same small number of classes."""

import numpy as np

from fedkd.data.images import Integers
from fedkd.errors import PartitionError
from fedkd.partitions.drawing import deal_by_class, draw_until_enough
from fedkd.partitions.units import Units


def pathological(
    units: Units,
    num_clients: int,
    classes_per_client: int,
    min_examples: int,
    rng: np.random.Generator,
) -> list[Integers]:
    """Give each client exactly ``classes_per_client`` classes, drawn at random.

    Every class that occurs has at least one client and at most as many as it has images; its images
    are divided equally (up to one) among its clients. How many clients a class has is drawn first
    (one, and a hypergeometric share of what is left of the client-class pairs), then, class by
    class in random order, the clients with most free places take it, ties at random. That never
    runs into a dead end, as drawing classes client by client can (Gale and Ryser: equal numbers of
    classes per client can always be met; Havel and Hakimi: by this greedy choice, in any order of
    classes). Drawn anew until every client has ``min_examples``.

    With groups, read "unit" for "image" above: a class has at most as many clients as units, and
    they get equal numbers of images as nearly as :func:`fedkd.partitions.drawing.deal` makes them.
    A group with images of several classes goes with that of most of them, and brings the others
    along, so that its client has more classes than asked for.

    Args:
        units: Groups and single images, by whose class they are dealt.
        num_clients: At least 1.
        classes_per_client: At least 1.
        min_examples: Images that each client has at least.
        rng: Source of the draws.

    Returns:
        Units of each client, class by class.

    Raises:
        PartitionError: More classes per client than occur; too few places for all classes, so that
            one would belong to nobody; too few images of rare classes to fill all places; or a
            ``min_examples`` that is practically never reached.

    Source: Li et al., "Federated Learning on Non-IID Data Silos: An Experimental Study", ICDE 2022
    (#C = k). Differs: there a class may be left without a client, and its images unused.
    """
    _, num_units = np.unique(units.labels, return_counts=True)
    totals = np.bincount(units.labels, units.sizes).astype(np.int64)
    totals = totals[totals > 0]
    num_present, num_pairs = len(totals), num_clients * classes_per_client
    most = np.minimum(num_units, num_clients)
    things = "lesions or patients (partition.keep_groups)" if units.name_of_largest else "images"
    asked = f"partition.classes_per_client is {classes_per_client}"
    if classes_per_client > num_present:
        raise PartitionError(
            f"{asked}, but only {num_present} classes have training images; use {num_present} or "
            "fewer"
        )
    if num_pairs < num_present:
        raise PartitionError(
            f"{asked} for {num_clients} clients: that is room for {num_pairs} classes, but "
            f"{num_present} have training images; use at least "
            f"{-(-num_present // num_clients)} classes per client, or more clients"
        )
    if num_pairs > most.sum():
        raise PartitionError(
            f"{asked} for {num_clients} clients: that is {num_pairs} pairs of client and class, "
            f"but a class has at most as many clients as {things}, which allows {most.sum()}; use "
            "fewer classes per client or fewer clients"
        )

    def draw() -> tuple[Integers, Integers]:
        owners = 1 + rng.multivariate_hypergeometric(
            most - 1, num_pairs - num_present, method="marginals"
        )
        free = np.full(num_clients, classes_per_client)
        counts = np.zeros((num_present, num_clients), np.int64)
        for number in rng.permutation(num_present):
            freest = np.lexsort((rng.random(num_clients), -free))[: owners[number]]
            free[freest] -= 1
            share, rest = divmod(totals[number], owners[number])
            counts[number, freest] = share
            counts[number, rng.permutation(freest)[:rest]] += 1
        return counts, counts.sum(axis=0)

    return draw_until_enough(
        draw,
        lambda counts: deal_by_class(units, counts, rng),
        units,
        min_examples,
        f"partition.classes_per_client = {classes_per_client}",
        "raise classes_per_client, use fewer clients, or lower min_examples",
    )
