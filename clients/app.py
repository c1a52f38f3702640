"""The Flower ClientApp: messages in and out of a node."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.node import Node, State
from fedkd import config, wire
from fedkd.errors import ConfigError
from fedkd.experiment import open_experiment
from fedkd.recipe import Recipe

OpenNode = Callable[[Context], Node]


def make_app(open_node: OpenNode) -> ClientApp:
    """A ClientApp that answers roll calls and trains.

    Args:
        open_node: Gives the node of this process; called with each message's context.
    """
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        """Say which partition this client has."""
        metrics = MetricRecord({wire.PARTITION_ID: partition_id(context)})
        return Message(RecordDict({wire.METRICS: metrics}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Train the received student for one round and remember the client's state."""
        instructions = message.content.config_records[wire.CONFIG]
        reply, state = open_node(context).train(
            partition_id(context),
            message.content.array_records[wire.ARRAYS].to_torch_state_dict(),
            _load_state(context.state),
            round_number=int(instructions[wire.ROUND]),  # type: ignore[arg-type]
            score_classes=bool(instructions[wire.SCORE_CLASSES]),
        )
        _save_state(context.state, state)
        content = RecordDict(
            {wire.ARRAYS: ArrayRecord(reply.arrays), wire.METRICS: MetricRecord(reply.metrics)}
        )
        return Message(content, reply_to=message)

    return app


def partition_id(context: Context) -> int:
    """The client's partition, from the node's config."""
    if "partition-id" not in context.node_config:
        raise ConfigError(
            "this node has no partition-id; start it with --node-config 'partition-id=<number>'"
        )
    return int(context.node_config["partition-id"])


def _load_state(records: RecordDict) -> State:
    return {name: dict(r.to_torch_state_dict()) for name, r in records.array_records.items()}


def _save_state(records: RecordDict, state: State) -> None:
    for name, tensors in state.items():
        records[name] = ArrayRecord(tensors)


@cache
def _node(path: str) -> Node:
    return Node(open_experiment(config.load(Recipe, Path(path))))


def _node_of_run(context: Context) -> Node:
    """The node of a process that Flower started: one per recipe, opened at the first message."""
    return _node(str(context.run_config["config"]))


app = make_app(_node_of_run)
