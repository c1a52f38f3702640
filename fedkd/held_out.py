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
    on the mix of classes that it has trained on (our choice). Classes without training images
    belong to nobody.

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
    parts: list[list[Integers]] = [[] for _ in names]
    for number, own in enumerate(counts.T):
        rows = rng.permutation(np.flatnonzero(images.labels == number))
        ends = np.cumsum(_shares(len(rows), own)) if own.sum() else np.zeros(len(names), np.int64)
        for part, chunk in zip(parts, np.split(rows, ends), strict=False):
            part.append(chunk)
    return tuple(np.sort(np.concatenate(part)) for part in parts)


def _shares(total: int, weights: Integers) -> Integers:
    """Integers in proportion to the weights that add up to ``total``; earlier clients win ties."""
    quotas = total * weights / weights.sum()
    shares: Integers = np.floor(quotas).astype(np.int64)
    rest = total - int(shares.sum())
    shares[np.argsort(shares - quotas, kind="stable")[:rest]] += 1
    return shares
