"""The Grid whose nodes are answered for by Ray workers."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import ray
from flwr.app import Error, Message, MessageType
from flwr.clientapp import ClientApp
from ray.exceptions import ObjectLostError, RayActorError, RayError

from clients.node import Progress
from server.engines import messages as flower
from server.engines.grid import KnownNodes
from server.engines.ray_crew import Crew, Member, cause_of
from server.engines.ray_worker import Answer, News, Order, from_plain, to_plain
from server.signals import PATIENCE_S, safe_place

logger = logging.getLogger(__name__)

_TICK_S = 0.5


@dataclass(frozen=True)
class _Task:
    message: Message
    partition_id: int
    content: Any


class RayGrid(KnownNodes):
    """Carries messages from a ServerApp to clients on Ray workers.

    A client stays with the worker that had it last, the one with most images first. A worker that
    has none of its own left takes the largest that waits for the busiest of the others. What
    clients remember is in Ray's object store, which outlives workers.

    Args:
        crew: The workers.
        num_images: Training images of each client.
        client_app: Answers roll calls, in this process.
        progress: Told what clients do, twice a second, in the thread that waits for replies.
        reply_came: Told of each reply as it comes.
        stop_at_failure: When a client fails, the others of the round are given up.
    """

    def __init__(
        self,
        crew: Crew,
        num_images: Sequence[int],
        client_app: ClientApp,
        progress: Progress | None = None,
        reply_came: Callable[[Message], None] | None = None,
        stop_at_failure: bool = True,
    ) -> None:
        super().__init__(len(num_images))
        self._crew, self._num_images, self._app = crew, num_images, client_app
        self._progress, self._stops = progress, stop_at_failure
        self._reply_came = reply_came
        self._numbers = {node: number for number, node in enumerate(self._contexts)}
        self._replies: dict[str, Message] = {}
        self._waiting: list[_Task] = []
        self._running: dict[Member, tuple[_Task, Any]] = {}
        self._states: dict[int, Any] = {}
        self._homes: dict[int, Member] = {}
        self._told_s = 0.0
        self.num_sent = self.num_moved = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to workers; equal content goes into the object store once."""
        pushed = list(messages)
        contents: dict[int, Any] = {}
        for message in pushed:
            name = self._name(message)
            if message.metadata.message_type == MessageType.QUERY:
                context = self._contexts[message.metadata.dst_node_id]
                self._replies[name] = flower.answer(self._app, message, context)
                continue
            key = id(message.content)
            if key not in contents:
                contents[key] = ray.put(to_plain(message.content))
            number = self._numbers[message.metadata.dst_node_id]
            self._waiting.append(_Task(message, number, contents[key]))
        if self._waiting:
            self._crew.refill()
        # Longest first: what is short fills the gaps at the end.
        self._waiting.sort(key=lambda task: -self._num_images[task.partition_id])
        self._dispatch()
        return [message.metadata.message_id for message in pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages that are there, each once."""
        self._advance(0)
        return [self._replies.pop(name) for name in list(message_ids) if name in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return their replies.

        Args:
            messages: To any nodes.
            timeout: Seconds after which an error reply stands for what has not come; None waits.
        """
        names = self.push_messages(messages)
        if timeout is not None:
            self._crew.wait()  # for a worker that takes another's place: not the client's time
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._waiting or self._running:
            safe_place()
            left = _TICK_S if deadline is None else deadline - time.monotonic()
            if left <= 0:
                assert timeout is not None
                self._give_up(timeout)
            else:
                self._advance(min(left, _TICK_S))
        return self.pull_messages(names)

    def stop(self) -> None:
        """End the round where it is: clients note how far they are at their next step.

        Replies that come meanwhile are told of, progress is not. Workers take nothing more after
        this.
        """
        self._waiting.clear()
        self._stops, self._progress = False, None
        busy = {m.waits_for: m for m in self._running if m.waits_for is not None}
        if not busy:
            return
        for member in busy.values():
            member.actor.stop.remote()
        ready, _ = ray.wait(list(busy), num_returns=len(busy), timeout=PATIENCE_S)
        for reference in ready:
            self._finish(busy[reference])

    def _advance(self, seconds: float) -> None:
        """Wait until something happens, at most so long, and deal with it."""
        busy = {m.waits_for: m for m in self._crew.members if m.waits_for is not None}
        if busy:
            ready, _ = ray.wait(list(busy), timeout=seconds)
            for reference in ready:
                member = busy[reference]
                if member in self._running:
                    self._finish(member)
                else:
                    self._crew.proceed(member)
        if time.monotonic() - self._told_s > _TICK_S:
            self._told_s = time.monotonic()
            self._hear()
        if not self._crew.members:
            waiting, self._waiting = self._waiting, []
            for task in waiting:
                self._fail(task, flower.CLIENT_APP_RAISED, f"no worker is left: {self._crew.loss}")
        self._dispatch()

    def _dispatch(self) -> None:
        """Give idle workers their own clients, and then those of others."""
        for steals in (False, True):
            for member in self._crew.members:
                if member.is_idle and (task := self._choose(member, steals)):
                    self._send(member, task)

    def _choose(self, member: Member, steals: bool) -> _Task | None:
        """The next task, in the order of the number of images."""
        own = [t for t in self._waiting if self._homes.get(t.partition_id) is member]
        new = [t for t in self._waiting if t.partition_id not in self._homes]
        if own or new or not steals:
            return next(iter(own or new), None)
        load: dict[Member, int] = {}
        for task in self._waiting:
            home = self._homes[task.partition_id]
            load[home] = load.get(home, 0) + self._num_images[task.partition_id]
        busiest = max(load, key=lambda home: load[home], default=None)
        return next((t for t in self._waiting if self._homes[t.partition_id] is busiest), None)

    def _send(self, member: Member, task: _Task) -> None:
        self._waiting.remove(task)
        metadata = task.message.metadata
        order = Order(task.partition_id, metadata.message_type, metadata.group_id)
        answer, state = member.actor.answer.options(num_returns=2).remote(
            order, task.content, self._states.get(task.partition_id, ())
        )
        member.waits_for = answer
        self._running[member] = (task, state)
        self.num_sent += 1
        self.num_moved += self._homes.get(task.partition_id, member) is not member
        self._homes[task.partition_id] = member

    def _finish(self, member: Member) -> None:
        """Take a worker's answer, or say why there is none."""
        task, state = self._running.pop(member)
        try:
            answer: Answer = ray.get(cast(Any, member.waits_for))
        except RayActorError as error:
            self._bury(member)
            self._fail(task, flower.CLIENT_APP_RAISED, _epitaph(member, error))
            return
        except (RayError, OSError) as error:
            member.waits_for = None
            self._fail(task, flower.CLIENT_APP_RAISED, _loss(error))
            return
        member.waits_for = None
        self._tell(answer.news)
        if answer.error is not None:
            self._fail(task, *answer.error)
            return
        assert answer.content is not None
        if answer.has_new_state:
            self._states[task.partition_id] = state
        self._reply(task, Message(from_plain(answer.content), reply_to=task.message))

    def _fail(self, task: _Task, code: int, reason: str) -> None:
        self._reply(task, Message(Error(code, reason), reply_to=task.message))
        if self._stops:
            # The run ends with this error: do not train the others for nothing.
            self._waiting.clear()
            for member in list(self._running):
                self._running.pop(member)
                self._bury(member)

    def _reply(self, task: _Task, reply: Message) -> None:
        self._replies[task.message.metadata.message_id] = reply
        if self._reply_came is not None:
            self._reply_came(reply)

    def _bury(self, member: Member) -> None:
        """Another worker instead of one that died or is given up; its clients have no home."""
        self._crew.replace(member)
        self._homes = {n: home for n, home in self._homes.items() if home is not member}

    def _give_up(self, timeout: float) -> None:
        running = [(member, task) for member, (task, _) in self._running.items()]
        waiting, self._waiting = self._waiting, []
        self._running.clear()
        for member, task in running:
            self._bury(member)
            reason = (
                f"no answer within {timeout:g} s; its Ray worker ({member}) was ended, another one "
                "takes its place: raise failures.timeout_s if the client is only slow"
            )
            self._reply(
                task, Message(Error(flower.CLIENT_APP_RAISED, reason), reply_to=task.message)
            )
        for task in waiting:
            reason = (
                f"it waited {timeout:g} s for a free Ray worker; raise failures.timeout_s or "
                "engine.num_workers"
            )
            self._reply(
                task, Message(Error(flower.CLIENT_APP_RAISED, reason), reply_to=task.message)
            )

    def _hear(self) -> None:
        """Pass on what workers have to tell, and ask those at work again."""
        for member in self._crew.members:
            if member.news is not None and ray.wait([member.news], timeout=0)[0]:
                reference, member.news = member.news, None
                try:
                    self._tell(ray.get(reference))
                except RayError:
                    continue  # it died: its answer, which never comes, says so
            if member.news is None and member in self._running:
                member.news = member.actor.news.remote()

    def _tell(self, news: News) -> None:
        for name, level, text in news.log:
            logging.getLogger(name).log(level, "%s", text)
        if self._progress is not None:
            for number, (what, done, total) in news.progress.items():
                self._progress(number, what, done, total)


def _epitaph(member: Member, error: Exception) -> str:
    said = cause_of(error)
    short = "memory" in said.lower() and "low on memory" in said.lower()
    why = (
        "Ray ended it because this machine is short of memory"
        if short
        else "killed from outside, by the system for lack of memory, or by a crash in native code"
    )
    return (
        f"its Ray worker ({member}) died: {why}. Its state is kept, and another worker takes its "
        "place; if it happens again, lower engine.num_workers or training.batch_size, or set "
        f"failures.policy = 'retry'.\nRay says: {said}"
    )


def _loss(error: Exception) -> str:
    if isinstance(error, ObjectLostError):
        return (
            "what the client remembers is lost with the machine that kept it; start the run again "
            f"from its last checkpoint.\nRay says: {cause_of(error)}"
        )
    return cause_of(error)
