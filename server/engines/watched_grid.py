"""A Grid of Flower's that says what it waits for, keeps time limits and ends with its runtime."""

import logging
import time
from collections.abc import Callable, Iterable

from flwr.app import Error, Message, MetricRecord, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from clients.node import Progress
from fedkd import wire
from server.engines.messages import CLIENT_APP_RAISED
from server.signals import safe_place

logger = logging.getLogger(__name__)

_POLL_S = 0.05
_SAY_S = 10.0


class WatchedGrid(Grid):
    """Passes everything on to a Grid of Flower's, and waits for replies itself.

    Args:
        inner: The Grid; what :meth:`send_and_receive` needs of it are pushing and pulling.
        check: Called while it waits; raises if there is nothing to wait for any more.
        lost: Text before the reason of a client that did not raise, but did not answer either.
        progress: Told how many images a client has trained with when its reply is in.
        poll_s: Seconds between two looks for replies.
        stop_at_failure: Whether to wait no longer for the others once a client has failed.
        reply_came: Told of each reply as it comes.
    """

    def __init__(
        self,
        inner: Grid,
        check: Callable[[], None],
        lost: str,
        progress: Progress | None = None,
        poll_s: float = _POLL_S,
        stop_at_failure: bool = False,
        reply_came: Callable[[Message], None] | None = None,
    ) -> None:
        self._inner = inner
        self._check = check
        self._lost = lost
        self._progress = progress
        self._poll_s = poll_s
        self._stop_at_failure = stop_at_failure
        self._reply_came = reply_came

    def set_run(self, run: Run) -> None:
        """As the inner Grid does."""
        self._inner.set_run(run)

    @property
    def run(self) -> Run:
        """As the inner Grid's."""
        return self._inner.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """As the inner Grid does."""
        return self._inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """As the inner Grid does."""
        self._check()
        return self._inner.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """As the inner Grid does."""
        return self._inner.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As the inner Grid does."""
        return self._inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As the inner Grid does."""
        return self._inner.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """One reply to each message; an error reply for what was lost, or has not come in time.

        Fewer if it stops at a failure.

        Args:
            messages: To the clients.
            timeout: Seconds to wait for the replies.
        """
        sent = list(messages)
        named = list(zip(self._inner.push_messages(sent), sent, strict=True))
        waiting = {name: message for name, message in named if name}
        started = spoke = time.monotonic()
        # A SuperLink gives no id to a message for a node that is no longer registered.
        replies = [_failed(message, self._lost) for name, message in named if not name]
        while waiting:
            safe_place()
            self._check()
            for reply in self._inner.pull_messages(list(waiting)):
                asked = waiting.pop(reply.metadata.reply_to_message_id, None)
                if asked is None:
                    logger.warning("a second reply of a node, or one that was not asked, is left")
                    continue
                replies.append(self._readable(reply, asked))
                self._tell(replies[-1])
                if self._reply_came is not None:
                    self._reply_came(replies[-1])
            if self._stop_at_failure and any(reply.has_error() for reply in replies):
                return replies
            now = time.monotonic()
            if timeout is not None and now - started > timeout:
                break
            if waiting and now - spoke > _SAY_S:
                spoke = now
                done, total = len(replies), len(sent)
                logger.info("%d of %d clients have answered in %.0f s", done, total, now - started)
            if waiting:
                time.sleep(self._poll_s)
        late = f"it had not answered within {timeout:g} s" if timeout is not None else ""
        return replies + [_failed(message, late) for message in waiting.values()]

    def _readable(self, reply: Message, asked: Message) -> Message:
        if not reply.has_error() or reply.error.code == CLIENT_APP_RAISED:
            return reply
        return _failed(asked, f"{self._lost}: {reply.error.reason}")

    def _tell(self, reply: Message) -> None:
        if self._progress is None or reply.has_error():
            return
        metrics = reply.content.metric_records.get(wire.METRICS, MetricRecord())
        number, seen = metrics.get(wire.PARTITION_ID), metrics.get(wire.NUM_SEEN)
        # Nobody has looked at it yet: what is wrong with it is said where it is checked.
        if isinstance(number, int) and isinstance(seen, int):
            self._progress(number, "trained", seen, seen)


def _failed(message: Message, reason: str) -> Message:
    return Message(Error(CLIENT_APP_RAISED, reason), reply_to=message)
