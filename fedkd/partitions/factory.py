"""The partitions that a recipe can name, their settings, and how to make one."""

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from fedkd import paths, seeding
from fedkd.config import Section
from fedkd.data.images import Integers, LabelledImages
from fedkd.errors import PartitionError
from fedkd.partition import Partition
from fedkd.partitions.by_file import by_file
from fedkd.partitions.by_site import by_site
from fedkd.partitions.by_site_dirichlet import by_site_dirichlet
from fedkd.partitions.dirichlet import dirichlet
from fedkd.partitions.iid import iid
from fedkd.partitions.pathological import pathological
from fedkd.partitions.quantity_skew import quantity_skew
from fedkd.partitions.shards import shards
from fedkd.partitions.units import Units, units_of

logger = logging.getLogger(__name__)

PARTITIONS: dict[str, str] = {
    "iid": "at random, in equal parts",
    "dirichlet": "each class in random shares; alpha 0.1 is very skewed, 100 nearly iid",
    "pathological": "every client has classes_per_client classes, each equally divided",
    "shards": "sorted by class, cut into equal shards, shards_per_client for each client",
    "quantity_skew": "sizes in random shares (alpha), the same mix of classes",
    "by_site": "one client for each hospital of the data set",
    "by_site_dirichlet": "clients_per_site clients inside each hospital, in random shares (alpha)",
    "file": "as a manifest (partition.json) says",
}


class PartitionConfig(Section):
    """How the training images are divided over the clients."""

    name: Literal[
        "iid",
        "dirichlet",
        "pathological",
        "shards",
        "quantity_skew",
        "by_site",
        "by_site_dirichlet",
        "file",
    ] = "by_site"
    """``iid``: at random, in equal parts. ``dirichlet``: each class in random, unequal shares.
    ``pathological``: the same number of classes for each client. ``shards``: sorted by class, cut
    and dealt. ``quantity_skew``: unequal sizes. ``by_site``: one client per hospital of the data
    set. ``by_site_dirichlet``: several inside each hospital. ``file``: as a manifest says."""

    alpha: float = Field(default=0.5, gt=0, le=1e6)
    """Concentration of ``dirichlet``, ``quantity_skew`` and ``by_site_dirichlet``, in (0, 1e6]:
    0.1 = very skewed, 100 = nearly iid."""

    classes_per_client: int = Field(default=2, ge=1)
    """``pathological``: classes that each client has, exactly, >= 1. A lesion or patient with
    images of several classes counts as one of the most frequent; its client may have more."""

    shards_per_client: int = Field(default=2, ge=1)
    """``shards``: shards that each client has, >= 1."""

    clients_per_site: int = Field(default=2, ge=1)
    """``by_site_dirichlet``: clients inside each hospital, >= 1; 1 is ``by_site``."""

    file: str = ""
    """``file``: path of a ``partition.json`` that `fedkd partition` or a run wrote; variables are
    filled in. Empty with every other partition."""

    keep_groups: bool = True
    """Images of one lesion or patient, where the data set knows it, go to one client. ``by_site``
    and ``file`` follow the hospital and the manifest all the same, and ``by_site_dirichlet`` keeps
    groups together within each hospital."""

    min_examples: int = Field(default=1, ge=1)
    """Training images that each client has at least, >= 1."""

    @model_validator(mode="after")
    def _name_and_file_belong_together(self) -> "PartitionConfig":
        if self.name == "file" and not self.file:
            raise ValueError(
                "partition.name is 'file', but partition.file is not given; set it to the path of "
                "a partition.json"
            )
        if self.name != "file" and self.file:
            # A file that is named and not followed would be found out late, or never.
            raise ValueError(
                f"partition.file is {self.file!r}, but partition.name is {self.name!r}; set the "
                "name to 'file' to follow the file, or partition.file to '' to leave it"
            )
        return self


def partition(
    config: PartitionConfig, images: LabelledImages, num_clients: int | None, seed: int
) -> Partition:
    """Divide the training images over clients.

    One client holds all images, whatever the partition's name: that is centralized training.

    Args:
        config: Kind of division and its options.
        images: The training split; only labels, groups, sites and ids are looked at.
        num_clients: Number of clients. None means one per hospital with ``by_site``,
            ``clients_per_site`` per hospital with ``by_site_dirichlet`` and those of the manifest
            with ``file``.
        seed: The experiment's seed; equal arguments give equal divisions.

    Raises:
        PartitionError: If the request cannot be met: too few images or groups, a hospital without
            (enough) images, a number of clients that is missing or not what hospitals or manifest
            say, a manifest of other images, or a skew under which ``min_examples`` is practically
            never reached.
    """
    num_images, num_sites = len(images), len(images.site_names)
    stored: Partition | None = None
    fixed: int | None = None
    match config.name:
        case "by_site":
            fixed, why = num_sites, f"the data set has {num_sites} sites"
            meaning = "one client per site"
        case "by_site_dirichlet":
            fixed = num_sites * config.clients_per_site
            why = f"{num_sites} sites with {config.clients_per_site} clients each make {fixed}"
            meaning = "clients_per_site for each"
        case "file":
            path = paths.expand(config.file, "partition.file")
            stored = by_file(path, images, config.min_examples)
            fixed, why = len(stored.indices), f"{path} has {len(stored.indices)} clients"
            meaning = "those of the manifest"
    if num_clients is None:
        if fixed is None:
            raise PartitionError(
                f"num_clients is not set and partition.name is '{config.name}'; set num_clients "
                "(>= 1), or partition.name = 'by_site' for one client per hospital"
            )
        num_clients = fixed
    if num_clients < 1:
        raise PartitionError(f"num_clients is {num_clients}; it must be >= 1")
    if num_clients * config.min_examples > num_images:
        raise PartitionError(
            f"num_clients is {num_clients} with partition.min_examples = {config.min_examples}: "
            f"that needs {num_clients * config.min_examples} training images, there are "
            f"{num_images}; use fewer clients, a lower min_examples or more images"
        )
    if num_clients not in (1, fixed) and fixed is not None:
        raise PartitionError(
            f"num_clients is {num_clients} and partition.name is '{config.name}', but {why}; "
            f"leave num_clients out, set it to {fixed} ({meaning}) or 1 (all pooled), or use "
            "another partition"
        )
    if stored is not None and num_clients == len(stored.indices):
        return stored
    if num_clients == fixed:
        return _in_hospitals(config, images, seed)
    if num_clients == 1:
        parts = [np.arange(num_images)]
    else:
        units = units_of(images.labels, _groups(config, images))
        units.check_enough(num_clients, config.min_examples)
        if config.name == "pathological" and units.num_mixed:
            logger.warning(
                "partition.name is 'pathological', but %d lesions or patients have images of "
                "several classes; those who get them may have more than classes_per_client = %d",
                units.num_mixed,
                config.classes_per_client,
            )
        rng = seeding.rng(seed, "partition")
        parts = units.rows(_draw(config, units, num_clients, rng))
    return Partition(_ascending(parts), tuple(f"client-{number}" for number in range(num_clients)))


def _in_hospitals(config: PartitionConfig, images: LabelledImages, seed: int) -> Partition:
    """Clients that are hospitals, or parts of one."""
    names, per_site, least = images.site_names, config.clients_per_site, config.min_examples
    groups = _groups(config, images)
    _warn_of_groups_at_two_sites(groups, images.sites)
    if config.name == "by_site" or per_site == 1:
        return Partition(_ascending(by_site(images.sites, names, least)), names)
    parts = by_site_dirichlet(
        images.labels, groups, images.sites, names, per_site, config.alpha, least, seed
    )
    return Partition(
        _ascending(parts),
        tuple(f"{name}-{number}" for name in names for number in range(per_site)),
        tuple(name for name in names for _ in range(per_site)),
    )


def _draw(
    config: PartitionConfig, units: Units, num_clients: int, rng: np.random.Generator
) -> list[Integers]:
    """Units of clients that know no hospitals."""
    least = config.min_examples
    match config.name:
        case "iid":
            return iid(units, num_clients, least, rng)
        case "dirichlet":
            return dirichlet(units, num_clients, config.alpha, least, rng)
        case "pathological":
            return pathological(units, num_clients, config.classes_per_client, least, rng)
        case "shards":
            return shards(units, num_clients, config.shards_per_client, least, rng)
        case "quantity_skew":
            return quantity_skew(units, num_clients, config.alpha, least, rng)
    raise AssertionError(config.name)


def _groups(config: PartitionConfig, images: LabelledImages) -> Sequence[str]:
    """Group of each image, as far as it is to be kept together."""
    return images.groups if config.keep_groups else ("",) * len(images)


def _warn_of_groups_at_two_sites(groups: Sequence[str], sites: Integers) -> None:
    first_site: dict[str, int] = {}
    divided = {
        group: None
        for group, site in zip(groups, sites.tolist(), strict=True)
        if group and first_site.setdefault(group, site) != site
    }
    if divided:
        logger.warning(
            "%d lesions or patients have images at several sites, such as %s; clients are sites, "
            "so that partition.keep_groups cannot keep these together",
            len(divided),
            ", ".join(list(divided)[:3]),
        )


def _ascending(parts: list[Integers]) -> tuple[Integers, ...]:
    return tuple(np.sort(part).astype(np.int64) for part in parts)
