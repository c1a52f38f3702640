"""Replies of clients: who failed, what they sent, and whether it may be used."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, Message

from fedkd import wire
from fedkd.errors import ClientFailure, UpdateRefused
from strategies.arrays import HeldArray, view

Metrics = Mapping[str, Any]
"""A client's metrics by the keys of :mod:`fedkd.wire`."""


class Replies(NamedTuple):
    """What came in, client by client."""

    messages: Sequence[Message]
    updates: Sequence[ArrayRecord]
    metrics: Sequence[Metrics]


def answers_of(replies: Iterable[Message], numbers: Mapping[int, int]) -> list[Message]:
    """The replies, or a ClientFailure that names every client that raised."""
    received = list(replies)
    failed = sorted(
        (numbers.get(reply.metadata.src_node_id, reply.metadata.src_node_id), reply.error.reason)
        for reply in received
        if reply.has_error()
    )
    if failed:
        raise ClientFailure("\n".join(f"client {number} failed: {why}" for number, why in failed))
    return received


def checked_update(
    reply: Message, number: int, received: Mapping[str, npt.NDArray[Any]]
) -> ArrayRecord:
    """The arrays of a reply, read once, unless something is wrong with them.

    Args:
        reply: Of one client.
        number: Its partition id.
        received: What it was sent, whose names, shapes and dtypes it must have.

    Raises:
        UpdateRefused: It has others, or values that are not finite.
    """
    arrays = reply.content.array_records[wire.ARRAYS]
    if set(arrays) != set(received):
        differing = sorted(set(arrays) ^ set(received))
        raise UpdateRefused(
            f"client {number} sent other arrays than it received; the first: {differing[0]}"
        )
    checked = ArrayRecord()
    # In the order of what was sent: Flower's distances and momenta go by position.
    for name, expected in received.items():
        values = view(arrays[name])
        if values.shape != expected.shape or values.dtype != expected.dtype:
            raise UpdateRefused(
                f"client {number} sent {name} as {values.dtype} {values.shape}; "
                f"expected {expected.dtype} {expected.shape}"
            )
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise UpdateRefused(
                f"client {number} sent {bad} values of {name} that are not finite; its "
                "training diverged: lower training.learning_rate or set training.clip_norm"
            )
        checked[name] = HeldArray(values)
    return checked


def num_bytes(metrics: Metrics, update: ArrayRecord) -> int:
    """Bytes of the values that a client sent, 8 for each number of its metrics."""
    numbers = sum(len(value) if isinstance(value, list) else 1 for value in metrics.values())
    return sum(array.numpy().nbytes for array in update.values()) + 8 * numbers
