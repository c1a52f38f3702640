"""The engine ``inprocess``: a Flower Grid whose nodes live in this process.

Clients run one after another when their message is sent, or several at a time on threads
(``engine.num_workers``). There is nothing to start, one image store serves them all, and without
threads a debugger works inside a client.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, closing

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.app import make_app
from clients.process_memory import ProcessMemory
from fedkd.errors import ConfigError
from server.app import make_app as make_server_app
from server.engines import messages as flower
from server.engines.clients import Clients, Main
from server.engines.grid import KnownNodes
from server.engines.threads import Threads
from server.signals import safe_place
from strategies.arrays import hold

Answer = Callable[[ClientApp, Sequence[tuple[Message, Context]]], Generator[Message, None, None]]
"""A ClientApp, messages and the contexts of their nodes -> replies, in the order in which they
come. Who needs no more of them closes the generator."""


def run(main: Main, clients: Clients) -> None:
    """Join ServerApp and ClientApp by a Grid in this process; see :class:`Engine`.

    Raises:
        ConfigError: Clients are to be left after a time, which one process cannot do.
    """
    recipe, num_clients = clients.experiment.recipe, clients.experiment.num_clients
    _check_timeout(recipe.failures.timeout_s)
    engine, stop = recipe.engine, recipe.failures.policy == "stop"
    with ExitStack() as stack:
        memory = stack.enter_context(ProcessMemory(engine.max_state_mb * 10**6))
        if engine.num_workers in (None, 1):
            app = make_app(lambda _: clients.node, memory, hold)
            answer: Answer = one_after_another
        else:
            threads = stack.enter_context(Threads(clients, engine.num_workers))
            app = make_app(lambda _: threads.node, memory, hold)
            answer = threads.answer
        grid = InProcessGrid(
            app, num_clients, answer, stop_at_failure=stop, reply_came=clients.reply_came
        )
        make_server_app(main)(grid, flower.server_context())


def _check_timeout(timeout_s: float | None) -> None:
    if timeout_s is not None:
        raise ConfigError(
            f"failures.timeout_s is {timeout_s:g}, but engine.name is 'inprocess', where a client "
            "cannot be left while it trains; set engine.name = 'ray' or 'flower', or leave "
            "failures.timeout_s out"
        )


def one_after_another(
    app: ClientApp, sent: Sequence[tuple[Message, Context]]
) -> Generator[Message, None, None]:
    """Run the app in the caller's thread, for each message when its reply is wanted."""
    for message, context in sent:
        yield flower.answer(app, message, context)


class InProcessGrid(KnownNodes):
    """Carries messages from a ServerApp to a ClientApp in the same process.

    Args:
        client_app: Runs for every node.
        num_clients: Nodes; node ``i`` has partition ``i``.
        answer: How the app answers messages that are sent together.
        stop_at_failure: Ask no further client of a round once one has raised.
        reply_came: Told of each reply as it comes.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_clients: int,
        answer: Answer = one_after_another,
        *,
        stop_at_failure: bool = True,
        reply_came: Callable[[Message], None] | None = None,
    ) -> None:
        super().__init__(num_clients)
        self._app = client_app
        self._answer = answer
        self._stop_at_failure = stop_at_failure
        self._reply_came = reply_came
        self._replies: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run the ClientApp for each message; its reply waits under the message's id.

        With ``stop_at_failure`` it stops at the first client that raises; later messages are not
        answered.
        """
        sent = list(messages)
        ids = [self._name(message) for message in sent]
        nodes = [self._contexts[message.metadata.dst_node_id] for message in sent]
        with closing(self._answer(self._app, list(zip(sent, nodes, strict=True)))) as replies:
            for reply in replies:
                self._replies[reply.metadata.reply_to_message_id] = reply
                if self._reply_came is not None:
                    self._reply_came(reply)
                safe_place()
                if reply.has_error() and self._stop_at_failure:
                    # A failed client ends the run: do not train the others for nothing.
                    break
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages, in this order and each once."""
        return [self._replies.pop(name) for name in list(message_ids) if name in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return their replies; in one process nothing can time out."""
        return self.pull_messages(self.push_messages(messages))
