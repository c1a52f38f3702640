"""A division of the training images over clients; how it is made is in ``fedkd.partitions``."""

import hashlib
from dataclasses import dataclass

import numpy as np

from fedkd.data.images import Integers


@dataclass(frozen=True, eq=False)
class Partition:
    """Which training images each client holds; every image belongs to exactly one client.

    Attributes:
        indices: Rows of the training split per client, ascending, int64 (num_examples,) each.
        client_names: One name per client.
        client_sites: Name of the hospital that each client is a part of; empty where clients are
            not parts of hospitals.
    """

    indices: tuple[Integers, ...]
    client_names: tuple[str, ...]
    client_sites: tuple[str, ...] = ()

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
