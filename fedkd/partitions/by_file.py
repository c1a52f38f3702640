"""The division that a manifest describes."""

import logging
from collections import Counter
from pathlib import Path

import numpy as np

from fedkd.data.images import LabelledImages
from fedkd.errors import PartitionError
from fedkd.partition import Partition
from fedkd.partitions import manifest

logger = logging.getLogger(__name__)


def by_file(path: Path, images: LabelledImages, min_examples: int) -> Partition:
    """Give each client the images that a manifest names, and its name; nothing is drawn.

    The images must be those of the manifest: the same ids, classes and sites. If they also come in
    the same order, the division is the same bit for bit; in another order every client still has
    its images, but their rows, the partition hash and the bits of a run differ, and a warning says
    so.

    Args:
        path: A ``partition.json``.
        images: The training split.
        min_examples: Images that each client has at least.

    Raises:
        PartitionError: A file that is no whole manifest, or not one of these images; the first
            image that does not match is named.
    """
    stored = manifest.read(path)
    if stored.class_names != images.class_names:
        raise PartitionError(
            f"{path} has the classes {', '.join(stored.class_names)}, the data set has "
            f"{', '.join(images.class_names)}; they must be the same, in the same order"
        )
    _check_ids(path, stored, images)
    row_of = {name: row for row, name in enumerate(images.ids)}
    indices = tuple(
        np.sort(np.array([row_of[name] for name in client.ids], np.int64))
        for client in stored.clients
    )
    sites = tuple(client.site for client in stored.clients if client.site is not None)
    divided = Partition(
        indices,
        tuple(client.name for client in stored.clients),
        sites if len(sites) == len(indices) else (),
    )
    _check_counts(path, stored, images, divided, min_examples)
    if divided.hash != stored.partition_sha256:
        logger.warning(
            "%s: the training images stand in another order than when it was written. Every client "
            "has its images, but the partition hash and the bits of a run differ.",
            path,
        )
    return divided


def _check_ids(path: Path, stored: manifest.Manifest, images: LabelledImages) -> None:
    """Refuse other images than those of the manifest, and ids that occur twice."""
    owner: dict[str, str] = {}
    for client in stored.clients:
        for name in client.ids:
            if name in owner:
                raise PartitionError(
                    f"{path} names the image {name} twice, at {owner[name]} and at {client.name}; "
                    "ids must be unique: make them so in the data set, and the manifest anew"
                )
            owner[name] = client.name
    present = set(images.ids)
    if len(present) < len(images.ids):
        twice = next(name for name, number in Counter(images.ids).items() if number > 1)
        raise PartitionError(
            f"the image id {twice} occurs twice in the training split; a division by file needs "
            "unique ids"
        )
    lost = [name for name in owner if name not in present]
    new = [name for name in images.ids if name not in owner]
    problems = []
    if lost:
        problems.append(
            f"{len(lost)} of its {len(owner)} images are not in the training split, the first "
            f"{lost[0]} of {owner[lost[0]]}"
        )
    if new:
        problems.append(
            f"{len(new)} of {len(images.ids)} training images are not in it, the first {new[0]}"
        )
    if problems:
        raise PartitionError(
            f"{path} is the division of other images: {'; '.join(problems)}; use the data set that "
            "it was made from, or make it anew with `fedkd partition`"
        )


def _check_counts(
    path: Path,
    stored: manifest.Manifest,
    images: LabelledImages,
    divided: Partition,
    min_examples: int,
) -> None:
    """Refuse images with the right ids but other classes or sites, and clients with too few."""
    counts = divided.counts(images.labels, images.num_classes)
    for client, row in zip(stored.clients, counts, strict=True):
        for name, count in zip(images.class_names, row, strict=True):
            if client.counts.get(name) != count:
                raise PartitionError(
                    f"{path} has {client.counts.get(name)} images of {name} at {client.name}, but "
                    f"by the data set's labels it is {count}; use the data set that it was made "
                    "from"
                )
    if manifest.data_sha256(images) != stored.data_sha256:
        raise PartitionError(
            f"{path} has the ids of these training images, but some have another class or site "
            "than when it was written (data_sha256 differs); use the data set that it was made from"
        )
    few = [
        f"{client.name} ({len(client.ids)})"
        for client in stored.clients
        if len(client.ids) < min_examples
    ]
    if few:
        raise PartitionError(
            f"too few training images (in brackets) in {path} at {', '.join(few)}; each client "
            f"needs at least partition.min_examples = {min_examples}: lower it, or make another "
            "manifest"
        )
