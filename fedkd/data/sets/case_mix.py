"""Which hospital sees which disease: a seeded case mix, and the hospital of every image.

Hospitals differ in size and in their mix, and some never see some diseases, as specialised clinics
do. Our choice throughout.
"""

import numpy as np
import numpy.typing as npt

from fedkd.data.images import Integers
from fedkd.seeding import rng as derived_rng

Floats = npt.NDArray[np.float64]


def case_mix(seed: int, num_sites: int, num_classes: int, common_class: int) -> Floats:
    """How much of each class each hospital sees.

    A hospital lacks each class with chance 0.3, but every class keeps one hospital as its home, the
    homes going round, and every hospital sees the common class. From two hospitals on, at least two
    lack a class.

    Args:
        seed: Of the data set, >= 0.
        num_sites: Number of hospitals, >= 1.
        num_classes: Number of classes, >= 3 if num_sites > 1.
        common_class: The class that every hospital sees.

    Returns:
        float64 (num_sites, num_classes), >= 0; every column sums to 1; 0 marks a class that the
        hospital does not see.
    """
    rng = derived_rng(seed, "lesions/case-mix", num_sites)
    size = np.exp(rng.normal(0, 0.6, (num_sites, 1)))
    mix = size * np.exp(rng.normal(0, 0.8, (num_sites, num_classes)))
    if num_sites > 1:
        rare = np.delete(np.arange(num_classes), common_class)
        homes = np.full(num_classes, -1)
        homes[rng.permutation(rare)] = rng.permutation(num_sites)[np.arange(len(rare)) % num_sites]
        lacking = rng.random(mix.shape) < 0.3
        lacking[:, common_class] = False
        lacking[homes[rare], rare] = False
        for site in rng.permutation(num_sites)[:2]:
            elsewhere = rare[homes[rare] != site]
            if not lacking[site].any():
                lacking[site, rng.choice(elsewhere)] = True
        mix[lacking] = 0
    return np.asarray(mix / mix.sum(axis=0))


def assign_sites(mix: Floats, counts: Integers, common_class: int) -> list[Integers]:
    """Hospital of every image, class by class, following the mix by largest remainder.

    A hospital that would be left without any image takes one of the common class from the hospital
    that has most of them.

    Args:
        mix: As :func:`case_mix` returns it.
        counts: Images per class, int (num_classes,); the common class has at least one image per
            hospital.
        common_class: The class that every hospital sees.

    Returns:
        One int64 array per class, sorted by hospital.
    """
    shares = mix * counts
    per_site = np.floor(shares).astype(np.int64)
    for label, total in enumerate(counts):
        # A class that a hospital lacks has share 0 there, hence no remainder and no image.
        by_remainder = np.argsort(per_site[:, label] - shares[:, label], kind="stable")
        per_site[by_remainder[: total - per_site[:, label].sum()], label] += 1
    for empty in np.flatnonzero(per_site.sum(axis=1) == 0):
        per_site[per_site[:, common_class].argmax(), common_class] -= 1
        per_site[empty, common_class] += 1
    sites = np.arange(len(mix), dtype=np.int64)
    return [np.repeat(sites, per_site[:, label]) for label in range(len(counts))]
