"""What a Ray worker does: it holds one node, and answers messages for one client after another."""

import logging
import os
import socket
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from clients.app import make_app
from clients.node import Folders, Node, State
from fedkd.experiment import Experiment
from server.engines import messages as flower
from server.engines.packing import Bytes, Stamp, pack, sees, unpack
from server.terminal import OURS
from strategies.arrays import HeldArray, hold, view

Plain = dict[str, tuple[str, dict[str, Any]]]
"""The records of a message by name: of which kind, and what is in it; arrays are NumPy's."""

_KINDS = {"arrays": ArrayRecord, "metrics": MetricRecord, "config": ConfigRecord}


@dataclass
class News:
    """What a worker has to tell since it was asked last.

    Attributes:
        progress: The latest of each client: what is being done, done, and in all.
        log: Name of the logger, level and text of each record.
    """

    progress: dict[int, tuple[str, int, int]] = field(default_factory=dict)
    log: list[tuple[str, int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Order:
    """What a worker is asked, besides the content of the message and the client's state."""

    partition_id: int
    message_type: str
    group_id: str


@dataclass(frozen=True)
class Answer:
    """What a client replies, and what happened meanwhile.

    Attributes:
        content: None if it raised.
        error: Code and reason, if it raised.
        has_new_state: Whether the state that comes with this is to be kept.
        news: All that was not told yet.
    """

    content: Plain | None
    error: tuple[int, str] | None
    has_new_state: bool
    news: News


@dataclass(frozen=True)
class Settings:
    """What all workers of a run are told.

    Attributes:
        num_clients: In all.
        num_threads: CPU threads of torch.
        folder: Where relative paths begin.
        folders: Where clients write.
    """

    num_clients: int
    num_threads: int
    folder: Path
    folders: Folders


def to_plain(content: RecordDict) -> Plain:
    """The records, over the message's own memory."""
    plain: Plain = {}
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            plain[name] = ("arrays", {key: view(array) for key, array in record.items()})
        else:
            kind = "metrics" if isinstance(record, MetricRecord) else "config"
            plain[name] = (kind, dict(record.items()))
    return plain


def from_plain(plain: Plain) -> RecordDict:
    """The records, over the same memory."""
    content = RecordDict()
    for name, (kind, values) in plain.items():
        if kind == "arrays":
            values = {key: HeldArray(array) for key, array in values.items()}
        content[name] = _KINDS[kind](values)
    return content


class Worker:
    """An actor; it has a thread that answers, and one that tells what happens meanwhile."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ears = _Ears()
        self._memory = _PassedMemory()
        if settings.folder.is_dir():
            os.chdir(settings.folder)

    def introduce(self, files: Mapping[str, Stamp]) -> tuple[int, str, bool]:
        """Process id, name of the machine, and whether these very files are here."""
        return os.getpid(), socket.gethostname(), sees(files)

    def open(self, pieces: Sequence[Bytes]) -> None:
        """Make the node of this process from the packed experiment."""
        self._compute_alone()
        settings = self._settings
        experiment: Experiment = unpack(pieces)
        node = Node(experiment, self._ears.hear, settings.folders)
        self._app = make_app(lambda _: node, self._memory, hold)
        flower.introduce_process()
        # What is said while the node is made, the server's own process has said already.
        self._ears.listen()

    def answer(
        self, order: Order, content: Plain, state: Sequence[Bytes]
    ) -> tuple[Answer, list[Bytes]]:
        """The client's reply, and its new state, packed; no pieces mean an empty state.

        What is received lies in shared memory and is only read.
        """
        self._compute_alone()
        self._memory.begin(unpack(state) if state else {})
        context = flower.client_context(order.partition_id, self._settings.num_clients)
        message = Message(
            content=from_plain(content),
            message_type=order.message_type,
            dst_node_id=context.node_id,
            group_id=order.group_id,
        )
        try:
            reply = flower.answer(self._app, message, context)
        except KeyboardInterrupt:  # see `stop`
            told = (flower.CLIENT_APP_RAISED, "it was stopped between two steps")
            return Answer(None, told, False, self._ears.news()), []
        saved = self._memory.end()
        if reply.has_error():
            error = (reply.error.code, reply.error.reason or "")
            return Answer(None, error, False, self._ears.news()), []
        new_state = [] if saved is None else pack(saved).pieces
        answer = Answer(to_plain(reply.content), None, saved is not None, self._ears.news())
        return answer, new_state

    @ray.method(concurrency_group="news")
    def news(self) -> News:
        """What happened since the last answer or news."""
        return self._ears.news()

    @ray.method(concurrency_group="news")
    def stop(self) -> None:
        """Raise KeyboardInterrupt in the client that trains, at its next step."""
        self._ears.is_stopped = True

    def _compute_alone(self) -> None:
        # Threads are counted by the thread that asks, and Ray does not promise always the same.
        torch.set_num_threads(self._settings.num_threads)


class _PassedMemory:
    """The memory of a ClientApp: what came with the message, and what goes with its reply."""

    def begin(self, state: State) -> None:
        self._state, self._saved = state, False

    def end(self) -> State | None:
        """What was saved, if anything was; nothing is kept."""
        saved = self._state if self._saved else None
        self._state = {}
        return saved

    def load(self, context: Context) -> State:
        return self._state

    def save(self, context: Context, state: State) -> None:
        self._state, self._saved = state, True


class _Ears(logging.Handler):
    """Collects progress and log records until they are asked for."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._news, self._guard = News(), threading.Lock()
        self.is_stopped = False

    def listen(self) -> None:
        # Read-only arrays and buffers are what shared memory gives; nobody writes to them.
        warnings.filterwarnings("ignore", message="The given (NumPy array|buffer) is not writable")
        logging.captureWarnings(True)
        root = logging.getLogger()
        root.setLevel(logging.WARNING)
        root.addHandler(self)
        for name in OURS:
            logging.getLogger(name).setLevel(logging.INFO)

    def hear(self, partition_id: int, what: str, done: int, total: int) -> None:
        if self.is_stopped:
            raise KeyboardInterrupt
        with self._guard:
            self._news.progress[partition_id] = (what, done, total)

    def emit(self, record: logging.LogRecord) -> None:
        with self._guard:
            self._news.log.append((record.name, record.levelno, self.format(record)))

    def news(self) -> News:
        with self._guard:
            news, self._news = self._news, News()
        return news
