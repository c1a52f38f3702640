"""The Flower ClientApp: messages in and out of a node."""

import logging
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Protocol, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor

from clients.node import Node
from clients.state_file import State
from clients.state_folder import keep, recall
from fedkd import config, wire
from fedkd.errors import ConfigError, DataError, FedkdError
from fedkd.experiment import HeldOut, open_experiment
from fedkd.paths import find_recipe
from fedkd.recipe import Recipe
from fedkd.site import SiteAnswer, open_site

logger = logging.getLogger(__name__)

OpenNode = Callable[[Context], Node]
Pack = Callable[[dict[str, Tensor]], ArrayRecord]

DATA_PATH = "data-path"
"""Key of the node config: the folder in which a hospital has its own images."""


class Memory(Protocol):
    """Where clients keep their state between rounds."""

    def load(self, context: Context) -> State:
        """What was saved for this node last; empty at first."""

    def save(self, context: Context, state: State) -> None:
        """Keep the state of this node."""


class ContextMemory:
    """Keeps state in Flower's context, which travels with the node wherever it runs."""

    def load(self, context: Context) -> State:
        """Copies of the context's array records."""
        records = context.state.array_records
        return {name: dict(record.to_torch_state_dict()) for name, record in records.items()}

    def save(self, context: Context, state: State) -> None:
        """One array record for each part of the state."""
        for name, tensors in state.items():
            context.state[name] = ArrayRecord(tensors)


def make_app(open_node: OpenNode, memory: Memory, pack: Pack = ArrayRecord) -> ClientApp:
    """A ClientApp that answers roll calls, trains and evaluates.

    Args:
        open_node: Gives the node of this process; called with each message's context.
        memory: Where clients keep their state between rounds.
        pack: Makes the record of a reply's tensors, which nobody else has.
    """
    app = ClientApp(mods=[_keep_private])

    @app.query()
    def query(message: Message, context: Context) -> Message:
        """Say which partition this client has, and, if asked, what a hospital has in its folder."""
        metrics = MetricRecord({wire.PARTITION_ID: partition_id(context)})
        content = RecordDict({wire.METRICS: metrics})
        asked = message.content.config_records.get(wire.CONFIG, ConfigRecord())
        if asked.get(wire.DESCRIBE) and DATA_PATH in context.node_config:
            answer = SiteAnswer.of(open_node(context).experiment)
            metrics.update(answer.numbers)
            words = content[wire.CONFIG] = ConfigRecord()
            words.update(answer.words)
        return Message(content, reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Train the received student for one round and remember the client's state."""
        instructions = message.content.config_records[wire.CONFIG]
        if DATA_PATH in context.node_config and not instructions.get(wire.AT_HOSPITALS):
            raise ConfigError(
                f"client {partition_id(context)} has a data-path, but the server has no "
                "server-data and takes its images for those of the recipe; start `flwr run` with "
                "server-data in --run-config, or the SuperNodes without data-path"
            )
        number, round_number = partition_id(context), int(cast(int, instructions[wire.ROUND]))
        node = open_node(context)
        folder = node.folders.states
        try:
            reply, state = node.train(
                number,
                message.content.array_records[wire.ARRAYS].to_torch_state_dict(),
                recall(folder, number, memory.load(context), round_number),
                round_number=round_number,
                score_classes=bool(instructions[wire.SCORE_CLASSES]),
                best_round=int(cast(int, instructions[wire.BEST_ROUND])),
                proximal_mu=float(cast(float, instructions.get(wire.PROXIMAL_MU, 0.0))),
            )
        except Exception as error:
            name = node.experiment.partition.client_names[number]
            error.add_note(f"while client {number} ({name}) trained in round {round_number}")
            raise
        # What the server refuses is not remembered: an optimiser would never lose its NaN.
        if all(tensor.isfinite().all() for tensor in reply.arrays.values()):
            memory.save(context, state)
            keep(folder, number, round_number, state)
        content = RecordDict(
            {wire.ARRAYS: pack(reply.arrays), wire.METRICS: MetricRecord(reply.metrics)}
        )
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        """Predict the client's own part of a split with a global student and its own tensors."""
        if DATA_PATH in context.node_config:
            raise ConfigError(
                f"client {partition_id(context)} has images of its own, of which no prediction "
                "leaves the hospital; set strategy.exchange = 'all'"
            )
        instructions = message.content.config_records[wire.CONFIG]
        number, node = partition_id(context), open_node(context)
        probabilities = node.evaluate(
            number,
            message.content.array_records[wire.ARRAYS].to_torch_state_dict(),
            recall(node.folders.states, number, memory.load(context)),
            as_of_round=int(cast(int, instructions[wire.AS_OF_ROUND])),
            split=cast(HeldOut, instructions[wire.SPLIT]),
        )
        metrics = MetricRecord(
            {wire.PARTITION_ID: number, wire.PROBABILITIES: probabilities.ravel().tolist()}
        )
        return Message(RecordDict({wire.METRICS: metrics}), reply_to=message)

    return app


def _keep_private(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Tell a hospital alone what may name its files and patients, whatever it was asked.

    Of a hospital's errors only those travel whose text fedkd wrote and in which no path can be, as
    it has no separator of folders; of others, that of its images or its kind is said.
    """
    try:
        return call_next(message, context)
    except Exception as error:
        if DATA_PATH not in context.node_config:
            raise
        about_images = isinstance(error, DataError | OSError)
        written = isinstance(error, FedkdError)
        if written and not about_images and not re.search(r"[/\\]", str(error)):
            raise
        logger.error("%s", error, exc_info=not written)
        failed = "cannot use the images of its data-path" if about_images else "failed"
        kind = "" if about_images else f" ({type(error).__name__})"
        raise (DataError if about_images else FedkdError)(
            f"client {partition_id(context)} {failed}{kind}; its own log says why, which does not "
            "leave the hospital, as it may name files and patients"
        ) from None


def partition_id(context: Context) -> int:
    """The client's partition, from the node's config."""
    if "partition-id" not in context.node_config:
        raise ConfigError(
            "this node has no partition-id; start it with --node-config 'partition-id=<number>'"
        )
    number = str(context.node_config["partition-id"])
    if not number.isdecimal():
        raise ConfigError(
            f"this node's partition-id is {number!r}; give it one of 0, 1, 2 ... in --node-config"
        )
    return int(number)


@cache
def _node(path: Path, folder: str | None, number: int, num_clients: int | None) -> Node:
    """One per recipe and folder, opened when its first message needs it."""
    recipe = config.load(Recipe, path)
    if recipe.engine.num_threads:
        torch.set_num_threads(recipe.engine.num_threads)
    if folder is None:
        return Node(open_experiment(recipe))
    return Node(open_site(recipe, number, num_clients, Path(folder)))


def _node_of_run(context: Context) -> Node:
    """The node of a process that Flower started: of one hospital, if it has a data-path.

    Without one the whole recipe is opened, as in a simulation, and serves all its clients.
    """
    path = find_recipe(str(context.run_config["config"]))
    folder = context.node_config.get(DATA_PATH)
    if folder is None:
        return _node(path, None, 0, None)
    given = context.node_config.get("num-partitions")
    return _node(path, str(folder), partition_id(context), int(given) if given else None)


app = make_app(_node_of_run, ContextMemory())
