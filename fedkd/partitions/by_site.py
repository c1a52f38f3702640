"""One client for each hospital."""

import numpy as np

from fedkd.data.images import Integers
from fedkd.errors import PartitionError


def by_site(
    sites: Integers, site_names: tuple[str, ...], min_examples: int, clients_per_site: int = 1
) -> list[Integers]:
    """The rows of each hospital, ascending; nothing is drawn.

    Args:
        sites: Index of each image's hospital, int64 (num_images,).
        site_names: One name per hospital.
        min_examples: Images that each client has at least.
        clients_per_site: Clients that the images of each hospital must suffice for.

    Raises:
        PartitionError: Hospitals with too few training images, all named.
    """
    parts = [np.flatnonzero(sites == number) for number in range(len(site_names))]
    small = [
        f"{name} ({len(part)})"
        for name, part in zip(site_names, parts, strict=True)
        if len(part) < clients_per_site * min_examples
    ]
    if small:
        needed = f"each site needs at least partition.min_examples = {min_examples}"
        change = "remove the site from the data set"
        if clients_per_site > 1:
            needed += f" for each of partition.clients_per_site = {clients_per_site} clients"
            change += ", lower clients_per_site"
        raise PartitionError(
            f"too few training images (in brackets) at site {', '.join(small)}; {needed}: "
            f"{change}, or choose another partition"
        )
    return parts
