"""What Grids have in common whose nodes are known from the start."""

import itertools
from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from server.engines import messages as flower


class KnownNodes(Grid):
    """A Grid without the sending: node ``i`` has partition ``i``, and none ever leaves.

    Args:
        num_clients: Number of nodes.
    """

    def __init__(self, num_clients: int) -> None:
        self._run = flower.empty_run()
        contexts = (flower.client_context(number, num_clients) for number in range(num_clients))
        self._contexts = {context.node_id: context for context in contexts}
        self._message_ids = map(str, itertools.count(1))
        flower.introduce_process()

    def set_run(self, run: Run) -> None:
        """Take over the description of the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Description of the run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message from the server to a node."""
        return Message(
            content=content,
            message_type=message_type,
            dst_node_id=dst_node_id,
            group_id=group_id,
            ttl=ttl,
        )

    def get_node_ids(self) -> Iterable[int]:
        """All nodes."""
        return list(self._contexts)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """All nodes."""
        return [NodeInfo(node_id=node) for node in self._contexts]

    def _name(self, message: Message) -> str:
        """Give a message an id of its own, and return it."""
        message.metadata.__dict__["_message_id"] = name = next(self._message_ids)
        return name
