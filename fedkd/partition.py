"""Division of the training images over clients: at random, by Dirichlet skew, or by hospital."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from fedkd import seeding
from fedkd.config import Section
from fedkd.data.images import Integers
from fedkd.errors import PartitionError

PARTITIONS: dict[str, str] = {
    "iid": "at random, in equal parts",
    "dirichlet": "each class in random shares; alpha 0.1 is very skewed, 100 nearly iid",
    "by_site": "one client for each hospital of the data set",
}

# Redrawing costs microseconds; a request that fails this often has a chance of about 1 in 1000 at
# best, and its clients would be drawn from an odd corner of the distribution.
MAX_DRAWS = 1000


class PartitionConfig(Section):
    """How the training images are divided over the clients."""

    name: Literal["iid", "dirichlet", "by_site"] = "by_site"
    """``iid``: at random, in equal parts. ``dirichlet``: each class in random, unequal shares.
    ``by_site``: one client per hospital of the data set."""

    alpha: float = Field(default=0.5, gt=0, le=1e6)
    """Concentration of ``dirichlet``, in (0, 1e6]: 0.1 = very skewed, 100 = nearly iid."""

    min_examples: int = Field(default=1, ge=1)
    """Training images that each client has at least, >= 1."""


@dataclass(frozen=True, eq=False)
class Partition:
    """Which training images each client holds; every image belongs to exactly one client.

    Attributes:
        indices: Rows of the training split per client, ascending, int64 (num_examples,) each.
        client_names: One name per client.
    """

    indices: tuple[Integers, ...]
    client_names: tuple[str, ...]

    def counts(self, labels: Integers, num_classes: int) -> Integers:
        """Images per client and class, int64 (num_clients, num_classes)."""
        rows = [np.bincount(labels[own], minlength=num_classes) for own in self.indices]
        return np.stack(rows).astype(np.int64)

    @property
    def hash(self) -> str:
        """SHA-256 that names the division: equal for equal rows per client, names aside.

        It is taken over the number of clients and then, client by client, the number of rows and
        the rows, all as little-endian 64-bit integers.
        """
        digest = hashlib.sha256(np.array([len(self.indices)], "<i8").tobytes())
        for own in self.indices:
            digest.update(np.array([len(own)], "<i8").tobytes())
            digest.update(own.astype("<i8").tobytes())
        return digest.hexdigest()


def partition(
    config: PartitionConfig,
    labels: Integers,
    sites: Integers,
    site_names: tuple[str, ...],
    num_clients: int | None,
    seed: int,
) -> Partition:
    """Divide the training images over clients.

    One client holds all images, whatever the partition's name: that is centralized training.

    Args:
        config: Kind of division and its options.
        labels: Class of each training image, int64 (num_images,).
        sites: Index of each image's hospital, int64 (num_images,).
        site_names: One name per hospital.
        num_clients: Number of clients; None with ``by_site`` means one per hospital.
        seed: The experiment's seed; equal arguments give equal divisions.

    Raises:
        PartitionError: If the request cannot be met: too few images, a hospital without (enough)
            images, a number of clients that is missing or not the number of hospitals, or a
            Dirichlet skew under which ``min_examples`` is practically never reached.
    """
    num_images = len(labels)
    if num_clients is None:
        if config.name != "by_site":
            raise PartitionError(
                f"num_clients is not set and partition.name is '{config.name}'; set num_clients "
                "(>= 1), or partition.name = 'by_site' for one client per hospital"
            )
        num_clients = len(site_names)
    if num_clients < 1:
        raise PartitionError(f"num_clients is {num_clients}; it must be >= 1")
    if num_clients * config.min_examples > num_images:
        raise PartitionError(
            f"num_clients is {num_clients} with partition.min_examples = {config.min_examples}: "
            f"that needs {num_clients * config.min_examples} training images, there are "
            f"{num_images}; use fewer clients, a lower min_examples or more images"
        )
    names = tuple(f"client-{number}" for number in range(num_clients))
    if config.name == "by_site" and num_clients == len(site_names):
        parts = _by_site(sites, site_names, config.min_examples)
        names = tuple(site_names)
    elif num_clients == 1:
        parts = [np.arange(num_images)]
    elif config.name == "by_site":
        raise PartitionError(
            f"num_clients is {num_clients} and partition.name is 'by_site', but the data set has "
            f"{len(site_names)} sites; leave num_clients out, set it to {len(site_names)} (one "
            "client per site) or 1 (all pooled), or use another partition"
        )
    elif config.name == "iid":
        parts = np.array_split(seeding.rng(seed, "partition").permutation(num_images), num_clients)
    else:
        parts = _dirichlet(labels, num_clients, config.alpha, config.min_examples, seed)
    return Partition(tuple(np.sort(part).astype(np.int64) for part in parts), names)


def _by_site(sites: Integers, site_names: tuple[str, ...], min_examples: int) -> list[Integers]:
    parts = [np.flatnonzero(sites == number) for number in range(len(site_names))]
    small = [
        f"{name} ({len(part)})"
        for name, part in zip(site_names, parts, strict=True)
        if len(part) < min_examples
    ]
    if small:
        raise PartitionError(
            f"too few training images (in brackets) at site {', '.join(small)}; each site needs at "
            f"least partition.min_examples = {min_examples}: remove the site from the data set, "
            "or choose another partition"
        )
    return parts


def _dirichlet(
    labels: Integers, num_clients: int, alpha: float, min_examples: int, seed: int
) -> list[Integers]:
    """Give each class to the clients in Dirichlet shares.

    Per class, shares ~ Dirichlet(alpha, ..., alpha) over the clients and counts ~
    Multinomial(images of the class, shares); which images a client gets is a random choice. Drawn
    anew until every client has ``min_examples``. Clients are not balanced in size.

    Source: Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML
    2019 (heterogeneous partition). Differs: counts are drawn (our choice). Cutting each class at
    rounded-down cumulative shares, as flwr-datasets 0.6.1 does, leaves what is over of every class
    to the last client: in 97 to 100 % of our trial draws it had the rarest class (10 images), which
    other clients had in 19 to 71 %, and a class with one image is always its own.
    """
    rng = seeding.rng(seed, "partition")
    classes, totals = np.unique(labels, return_counts=True)
    best = 0
    for _ in range(MAX_DRAWS):
        shares = rng.dirichlet(np.full(num_clients, alpha), size=len(classes))
        counts = rng.multinomial(totals, shares)
        smallest = int(counts.sum(axis=0).min())
        best = max(best, smallest)
        if smallest >= min_examples:
            break
    else:
        raise PartitionError(
            f"no Dirichlet draw of {MAX_DRAWS} gave each of {num_clients} clients "
            f"partition.min_examples = {min_examples} of the {len(labels)} training images at "
            f"partition.alpha = {alpha} (best smallest client: {best}); raise alpha, use fewer "
            "clients, or lower min_examples"
        )
    parts: list[list[Integers]] = [[] for _ in range(num_clients)]
    for number, row in zip(classes, counts, strict=True):
        shuffled = rng.permutation(np.flatnonzero(labels == number))
        for own, rows in zip(parts, np.split(shuffled, np.cumsum(row)[:-1]), strict=True):
            own.append(rows)
    return [np.concatenate(own) for own in parts]
