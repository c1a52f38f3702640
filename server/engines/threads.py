"""Clients that train at the same time in this process, on threads."""

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.node import Node
from server.engines import messages as flower
from server.engines.clients import Clients
from server.signals import safe_place

_Step = tuple[int, str, int, int]
_Event = _Step | Future[Message]


class Threads:
    """Threads that answer messages, each with a node of its own over the same experiment.

    Shared are images, teachers' weights and what is computed once; own are the student's network
    and the teachers' modules. Torch gives each thread its own number of CPU threads. As a context
    manager it ends the threads.

    Args:
        clients: Whose progress is told in the thread that asks for answers.
        num_threads: Clients that train at the same time.
    """

    def __init__(self, clients: Clients, num_threads: int) -> None:
        self._progress = clients.progress
        self._reply_came = clients.reply_came
        self._own = threading.local()
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._stopped = threading.Event()
        waiting: SimpleQueue[Node] = SimpleQueue()
        for number in range(num_threads):
            node = clients.node.twin() if number else clients.node
            node.progress = self._step
            waiting.put(node)
        self._num_before = torch.get_num_threads()
        given = clients.experiment.recipe.engine.num_threads
        each = given or max(1, self._num_before // num_threads)
        self._pool = ThreadPoolExecutor(
            num_threads, "fedkd-client", initializer=self._begin, initargs=(waiting.get, each)
        )

    def __enter__(self) -> Self:
        """Nothing starts before there is a message."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the threads, which are idle or at their last step."""
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)
        # Some of torch's libraries have one number for the whole process.
        torch.set_num_threads(self._num_before)

    @property
    def node(self) -> Node:
        """The node of the thread that asks."""
        node: Node = self._own.node
        return node

    def answer(
        self, app: ClientApp, sent: Sequence[tuple[Message, Context]]
    ) -> Generator[Message, None, None]:
        """Replies as they come; see :data:`server.engines.inprocess.Answer`.

        Whoever closes the generator before its end, or is interrupted in it, stops clients that
        train at their next step; the others do not begin.
        """
        self._stopped.clear()
        events: SimpleQueue[_Event] = SimpleQueue()
        self._events = events
        futures = [self._pool.submit(flower.answer, app, *one) for one in sent]
        for future in futures:
            future.add_done_callback(events.put)
        num_waiting, given = len(futures), set[Future[Message]]()
        try:
            while num_waiting:
                event = events.get()
                if isinstance(event, Future):
                    num_waiting -= 1
                    given.add(event)
                    yield event.result()
                    continue
                if self._progress is not None:
                    self._progress(*event)
                safe_place()
        finally:
            self._stopped.set()
            for future in futures:
                future.cancel()
            for future in set(wait(futures).done) - given:
                # Nobody waits for it any more, but what is finished need not be done again.
                if not future.cancelled() and future.exception() is None:
                    self._reply_came(future.result())

    def _begin(self, take: Callable[[], Node], num_threads: int) -> None:
        self._own.node = take()
        torch.set_num_threads(num_threads)

    def _step(self, *step: *_Step) -> None:
        if self._stopped.is_set():
            raise _Stopped("the round has ended")
        self._events.put(step)


class _Stopped(KeyboardInterrupt):
    """Ends the training of a client whose reply nobody waits for, as Ctrl-C between two steps."""
