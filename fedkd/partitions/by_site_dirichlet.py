"""Several virtual hospitals inside each real one."""

from collections.abc import Sequence

from fedkd import seeding
from fedkd.data.images import Integers
from fedkd.partitions.by_site import by_site
from fedkd.partitions.dirichlet import dirichlet
from fedkd.partitions.units import units_of


def by_site_dirichlet(
    labels: Integers,
    groups: Sequence[str],
    sites: Integers,
    site_names: tuple[str, ...],
    clients_per_site: int,
    alpha: float,
    min_examples: int,
    seed: int,
) -> list[Integers]:
    """Divide each hospital's images over ``clients_per_site`` clients in Dirichlet shares.

    More clients than hospitals, whose images still differ as those of real hospitals do. With
    ``clients_per_site`` = 1 each client has what ``by_site`` gives it. Each hospital has a stream
    of its own, so that another one's images do not change its division. Groups stay together within
    a hospital. Our choice; the division of one hospital is
    :func:`fedkd.partitions.dirichlet.dirichlet`.

    Args:
        labels: Class of each image, int64 (num_images,).
        groups: Lesion or patient of each image; "" is an image of no known group.
        sites: Index of each image's hospital, int64 (num_images,).
        site_names: One name per hospital.
        clients_per_site: Clients inside each hospital, >= 1.
        alpha: Concentration, > 0: 0.1 = very skewed, 100 = nearly iid.
        min_examples: Images that each client has at least.
        seed: The experiment's.

    Returns:
        Rows of each client, ascending, hospital by hospital.

    Raises:
        PartitionError: A hospital with too few images or groups, or a skew under which
            ``min_examples`` is practically never reached.
    """
    parts: list[Integers] = []
    for number, rows in enumerate(by_site(sites, site_names, min_examples, clients_per_site)):
        rng = seeding.rng(seed, "partition", number)
        where = f" at site {site_names[number]}"
        units = units_of(labels[rows], [groups[row] for row in rows])
        units.check_enough(clients_per_site, min_examples, where)
        own = dirichlet(units, clients_per_site, alpha, min_examples, rng, where)
        parts += [rows[part] for part in units.rows(own)]
    return parts
