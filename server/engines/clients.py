"""What every engine is given: the clients of a run, and the server that will talk to them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from flwr.app import Context, Message, MessageType
from flwr.serverapp import Grid

from clients.node import Folders, Node, Progress
from fedkd.experiment import Experiment

Main = Callable[[Grid, Context], None]
"""What the server does with the Grid that an engine gives it, from the first message to the end."""


@dataclass(frozen=True)
class Clients:
    """The clients of a run, and where they tell and write.

    Attributes:
        experiment: What is run.
        progress: Told after every step of every client, always in the thread of the caller.
        folders: Where they write.
        replied: Told of each good reply to a training message as it comes, in the caller's thread.
    """

    experiment: Experiment
    progress: Progress | None = None
    folders: Folders = Folders()
    replied: Callable[[Message], None] | None = None

    @cached_property
    def node(self) -> Node:
        """The node of this process, which makes the initial arrays."""
        return Node(self.experiment, self.progress, self.folders)

    def reply_came(self, reply: Message) -> None:
        """For an engine to call with every reply as it comes, in the caller's thread."""
        is_good = reply.metadata.message_type == MessageType.TRAIN and not reply.has_error()
        if self.replied is not None and is_good:
            self.replied(reply)


class Engine(Protocol):
    """A module of this package: where clients run."""

    def run(self, main: Main, clients: Clients) -> None:
        """Start what must be started, call ``main`` once with a Grid, and end all that was started.

        It ends in the same way when ``main`` raises, whatever it raises.

        Raises:
            FedkdError: The engine cannot be started as the config asks.
        """
