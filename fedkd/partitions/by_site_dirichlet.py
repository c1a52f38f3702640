"""Several virtual hospitals inside each real one."""

from fedkd import seeding
from fedkd.data.images import Integers
from fedkd.partitions.by_site import by_site
from fedkd.partitions.dirichlet import dirichlet


def by_site_dirichlet(
    labels: Integers,
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
    of its own, so that another one's images do not change its division. Our choice; the division of
    one hospital is :func:`fedkd.partitions.dirichlet.dirichlet`.

    Args:
        labels: Class of each image, int64 (num_images,).
        sites: Index of each image's hospital, int64 (num_images,).
        site_names: One name per hospital.
        clients_per_site: Clients inside each hospital, >= 1.
        alpha: Concentration, > 0: 0.1 = very skewed, 100 = nearly iid.
        min_examples: Images that each client has at least.
        seed: The experiment's.

    Returns:
        Rows of each client, hospital by hospital, class by class.

    Raises:
        PartitionError: A hospital with too few images, or a skew under which ``min_examples`` is
            practically never reached.
    """
    parts: list[Integers] = []
    for number, rows in enumerate(by_site(sites, site_names, min_examples, clients_per_site)):
        rng = seeding.rng(seed, "partition", number)
        where = f" at site {site_names[number]}"
        own = dirichlet(labels[rows], clients_per_site, alpha, min_examples, rng, where)
        parts += [rows[part] for part in own]
    return parts
