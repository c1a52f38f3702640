"""Which val and test images belong to which client."""

import numpy as np

from fedkd import seeding
from fedkd.data.images import Integers, LabelledImages
from fedkd.partition import Partition


def divide_held_out(
    images: LabelledImages, train_labels: Integers, divided: Partition, seed: int
) -> tuple[Integers, ...]:
    """Each client's own rows of a held-out split; no row belongs to two clients.

    If the clients are sites of the split, each has the images of its site, and images of other
    sites belong to nobody. Otherwise the images of each class go to the clients in the proportion
    of their training images of that class, by largest remainders, so that every client is evaluated
    on the mix of classes that it has trained on (our choice). If the clients are parts of sites,
    this is done within each site. Classes without training images belong to nobody.

    Args:
        images: The val or test split.
        train_labels: Classes of all training images, int64 (num_train,).
        divided: The training images of each client.
        seed: Of the experiment.

    Returns:
        For each client its rows, ascending, int64 (any,); some may be empty.
    """
    names = divided.client_names
    if len(names) == 1:
        return (np.arange(len(images)),)
    if set(names) <= set(images.site_names):
        own_sites = [images.site_names.index(name) for name in names]
        return tuple(np.flatnonzero(images.sites == site) for site in own_sites)
    rng = seeding.rng(seed, "held-out")
    counts = divided.counts(train_labels, images.num_classes)
    if not divided.client_sites:
        return tuple(_in_proportion(images.labels, np.arange(len(images)), counts, rng))
    parts = [np.zeros(0, np.int64) for _ in names]
    for site in dict.fromkeys(divided.client_sites):
        clients = [number for number, own in enumerate(divided.client_sites) if own == site]
        number = images.site_names.index(site) if site in images.site_names else -1
        rows = np.flatnonzero(images.sites == number)
        for client, part in zip(
            clients, _in_proportion(images.labels, rows, counts[clients], rng), strict=True
        ):
            parts[client] = part
    return tuple(parts)


def _in_proportion(
    labels: Integers, rows: Integers, counts: Integers, rng: np.random.Generator
) -> list[Integers]:
    """Divide rows, class by class, in the proportion of each client's counts (clients, classes)."""
    parts: list[list[Integers]] = [[] for _ in counts]
    for number, own in enumerate(counts.T):
        drawn = rng.permutation(rows[labels[rows] == number])
        ends = np.cumsum(_shares(len(drawn), own)) if own.sum() else np.zeros(len(own), np.int64)
        for part, chunk in zip(parts, np.split(drawn, ends), strict=False):
            part.append(chunk)
    return [np.sort(np.concatenate(part)) for part in parts]


def _shares(total: int, weights: Integers) -> Integers:
    """Integers in proportion to the weights that add up to ``total``; earlier clients win ties."""
    quotas = total * weights / weights.sum()
    shares: Integers = np.floor(quotas).astype(np.int64)
    rest = total - int(shares.sum())
    shares[np.argsort(shares - quotas, kind="stable")[:rest]] += 1
    return shares
