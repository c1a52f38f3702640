"""Replies of clients: who failed, and what they sent. Whether it may be used: ``guard``."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from flwr.app import ArrayRecord, Message

from fedkd.errors import ClientFailure, UpdateRefused
from strategies.guard import Metrics


class Replies(NamedTuple):
    """What came in, client by client."""

    messages: Sequence[Message]
    updates: Sequence[ArrayRecord]
    metrics: Sequence[Metrics]


def answers_of(replies: Iterable[Message], numbers: Mapping[int, int]) -> list[Message]:
    """The replies, or a ClientFailure that names every client that raised.

    Args:
        replies: To messages of one kind.
        numbers: Partition id of each node; none while the roll is called.
    """
    received = list(replies)
    failed = sorted(
        (numbers.get(node, node), f"{'client' if node in numbers else 'node'}", why)
        for node, why in (
            (reply.metadata.src_node_id, reply.error.reason)
            for reply in received
            if reply.has_error()
        )
    )
    if failed:
        raise ClientFailure("\n".join(f"{what} {n} failed: {why}" for n, what, why in failed))
    return received


def by_number(answers: Iterable[Message], numbers: Mapping[int, int]) -> dict[int, Message]:
    """The answers by partition id, ascending.

    Raises:
        UpdateRefused: A node is unknown, or has answered twice.
    """
    found: dict[int, Message] = {}
    for answer in answers:
        node = answer.metadata.src_node_id
        if node not in numbers:
            raise UpdateRefused(f"node {node} sent a reply, but is none of the federation's")
        if numbers[node] in found:
            raise UpdateRefused(f"client {numbers[node]} sent two replies")
        found[numbers[node]] = answer
    return dict(sorted(found.items()))


def num_bytes(metrics: Metrics, update: ArrayRecord) -> int:
    """Bytes of the values that a client sent, 8 for each number of its metrics."""
    numbers = sum(len(value) if isinstance(value, list) else 1 for value in metrics.values())
    return sum(array.numpy().nbytes for array in update.values()) + 8 * numbers
