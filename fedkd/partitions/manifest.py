"""The manifest of a division: a JSON file from which it can be made again on another machine."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from fedkd.data.images import LabelledImages
from fedkd.errors import PartitionError
from fedkd.files import is_special
from fedkd.partition import Partition


class ClientEntry(BaseModel):
    """The training images of one client."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    """Name of the client."""
    site: str | None
    """Hospital that the client is a part of; null if it is not one."""
    counts: dict[str, int]
    """Images per class, absent classes included."""
    ids: tuple[str, ...]
    """Names of its images, in the order of the training split."""


class Manifest(BaseModel):
    """Which images each client has, what made this division, and hashes of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1, 2]
    """Of this format; version 1 has no ``data_set``."""
    settings: dict[str, Any]
    """The section ``partition`` of the recipe."""
    seed: int
    """Seed of the recipe."""
    num_images: int
    """Training images of all clients together."""
    class_names: tuple[str, ...]
    """Classes in the order of their indices."""
    data_set: dict[str, Any] | None = None
    """Which images these are, in words: see ``Recipe.data_set``; null for images that were given
    by the caller, and in version 1. It is for readers: what is checked is ``data_sha256``."""
    data_sha256: str
    """See :func:`data_sha256`."""
    partition_sha256: str
    """``Partition.hash``: over rows, so that it also hangs on the order of the training split."""
    clients_sha256: str
    """See :func:`clients_sha256`."""
    clients: tuple[ClientEntry, ...]
    """In the order of their partition ids, at least one."""


def describe(
    divided: Partition,
    train: LabelledImages,
    settings: dict[str, Any],
    seed: int,
    data_set: dict[str, Any] | None = None,
) -> Manifest:
    """The manifest of a division.

    Args:
        divided: The division.
        train: The images that were divided.
        settings: The section ``partition`` of the recipe, as plain values.
        seed: Seed of the recipe.
        data_set: ``Recipe.data_set``, if the images are those that the recipe names.
    """
    clients = tuple(
        ClientEntry(
            name=name,
            site=divided.client_sites[number] if divided.client_sites else None,
            counts=dict(zip(train.class_names, counts.tolist(), strict=True)),
            ids=tuple(str(train.ids[row]) for row in divided.indices[number]),
        )
        for number, (name, counts) in enumerate(
            zip(divided.client_names, divided.counts(train.labels, train.num_classes), strict=True)
        )
    )
    return Manifest(
        version=2,
        settings=settings,
        seed=seed,
        num_images=len(train),
        class_names=train.class_names,
        data_set=data_set,
        data_sha256=data_sha256(train),
        partition_sha256=divided.hash,
        clients_sha256=clients_sha256(clients),
        clients=clients,
    )


def to_json(manifest: Manifest) -> str:
    """The text of the file."""
    return json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n"


def read(path: Path) -> Manifest:
    """Read a manifest and check that it is as it was written.

    Raises:
        PartitionError: A file that is missing, unreadable, no manifest, or changed since.
    """
    try:
        if is_special(path):
            raise PartitionError(f"partition.file is {path}, which is no regular file; name a file")
        content = path.read_bytes()
    except OSError as error:
        raise PartitionError(
            f"cannot read the manifest {path}: {error.strerror}; partition.file must be a "
            "partition.json that `fedkd partition` or a run wrote"
        ) from None
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PartitionError(
            f"{path} is no manifest: {where + ': ' if where else ''}{first['msg']}; partition.file "
            "must be a partition.json that `fedkd partition` or a run wrote"
        ) from None
    if not manifest.clients or clients_sha256(manifest.clients) != manifest.clients_sha256:
        raise PartitionError(
            f"{path} was changed after it was written: its clients do not have its clients_sha256; "
            "copy it again, or make it anew with `fedkd partition`"
        )
    return manifest


def data_sha256(images: LabelledImages) -> str:
    """SHA-256 of which images there are and what they are, in whatever order.

    It is taken over one line of ASCII JSON per image, ``["id", "class", "site"]``, sorted. Pixels
    do not enter: they hang on the size asked for and on the decoder, and no division looks at them.
    """
    labels = np.asarray(images.class_names)[images.labels].tolist()
    sites = np.asarray(images.site_names)[images.sites].tolist()
    ids = map(str, images.ids)
    lines = sorted(json.dumps(values) for values in zip(ids, labels, sites, strict=True))
    return _sha256("\n".join(lines))


def clients_sha256(clients: tuple[ClientEntry, ...]) -> str:
    """SHA-256 of all that the manifest says of the clients, as ASCII JSON without spaces."""
    values = [client.model_dump(mode="json") for client in clients]
    return _sha256(json.dumps(values, separators=(",", ":")))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
