"""The roll call: which node has which partition, and what hospitals tell of themselves."""

import logging
import time

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedkd import wire
from fedkd.errors import FedkdError
from strategies.guard import metrics_of
from strategies.replies import answers_of

logger = logging.getLogger(__name__)

SETTLE_S = 10.0
"""Without a number of clients to wait for: nobody else has connected for so long (our choice)."""


def call_roll(
    grid: Grid, num_clients: int | None, timeout_s: float = 300.0, describe: bool = False
) -> dict[int, Message]:
    """Wait for all clients and ask each which partition it has.

    Node ids are random and come in any order; partition ids make sampling reproducible.

    Args:
        grid: Reaches the clients.
        num_clients: How many to wait for; None means those that are there when no further one has
            connected for ``SETTLE_S``.
        timeout_s: For connecting, and for answering.
        describe: Hospitals with a folder of their own shall say what they have, for which they
            open it.

    Returns:
        The answer of each client by its partition id, ascending from 0 without a gap.

    Raises:
        ClientFailure: Clients that raise.
        FedkdError: Clients that do not answer in time, or two with the same partition.
    """
    nodes = _connected(grid, num_clients, timeout_s)
    content = RecordDict()
    if describe:
        content[wire.CONFIG] = ConfigRecord({wire.DESCRIBE: True})
        logger.info("%d clients are connected and open their images ...", len(nodes))
    queries = [
        Message(content=content, message_type=MessageType.QUERY, dst_node_id=node) for node in nodes
    ]
    answers: dict[int, Message] = {}
    for reply in answers_of(grid.send_and_receive(queries, timeout=timeout_s), {}):
        sender = f"node {reply.metadata.src_node_id}"
        number = int(metrics_of(reply, sender)[wire.PARTITION_ID])
        if number in answers:
            raise FedkdError(f"two clients have partition {number}; give each its own")
        answers[number] = reply
    expected = num_clients or len(nodes)
    if sorted(answers) != list(range(expected)):
        raise FedkdError(
            f"clients have the partitions {sorted(answers)}; expected 0 to {expected - 1}"
        )
    return dict(sorted(answers.items()))


def _connected(grid: Grid, num_clients: int | None, timeout_s: float) -> list[int]:
    started = joined = told = time.monotonic()
    nodes: list[int] = []
    while True:
        now, found = time.monotonic(), sorted(grid.get_node_ids())
        if len(found) > len(nodes):
            joined = now
        nodes = found
        if num_clients is None and nodes and now - joined >= SETTLE_S:
            return nodes
        if num_clients is not None and len(nodes) >= num_clients:
            return nodes
        if now - started > timeout_s:
            raise FedkdError(
                f"{len(nodes)} of {num_clients or 'any'} clients connected within "
                f"{timeout_s:g} s; start {'the others, or lower num_clients' if nodes else 'them'}"
            )
        if now - told >= SETTLE_S:
            told = now
            logger.info("%d of %s clients are connected ...", len(nodes), num_clients or "any")
        time.sleep(0.5)
