"""Replies of clients made by hand, and a federation of clients that answer with them."""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedkd import wire
from fedkd.aggregation import StrategyConfig
from server.engines.inprocess import InProcessGrid
from strategies.base import Setup
from strategies.factory import make_strategy

GLOBAL = {
    "w": np.zeros(3, np.float32),
    "running_var": np.ones(2, np.float64),
    "num_batches_tracked": np.array(7, np.int64),
}
BUFFERS = frozenset({"running_var", "num_batches_tracked"})


def record(arrays):
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})


def update(
    number,
    w=0.0,
    num_examples=1,
    count=7,
    scores=(1.0, 1.0),
    losses=(1.0, 1.0),
    counts=(1, 1),
    variance=None,
    steps=1,
    loss=1.0,
):
    """Arrays and metrics; w and variance may be arrays, variance is |first w| if not given."""
    arrays = {
        "w": np.broadcast_to(w, 3).astype(np.float32),
        "running_var": np.broadcast_to(
            abs(np.ravel(w)[0]) if variance is None else variance, 2
        ).astype(np.float64),
        "num_batches_tracked": np.array(count, np.int64),
    }
    metrics = {
        wire.PARTITION_ID: number,
        wire.NUM_EXAMPLES: num_examples,
        wire.NUM_SEEN: num_examples,
        wire.NUM_STEPS: steps if num_examples else 0,
        wire.SECONDS: 0.5,
        wire.SUM + "loss": loss * num_examples,
        wire.CLASS_COUNTS: list(counts),
        wire.CLASS_SCORES: list(scores),
        wire.CLASS_LOSSES: list(losses),
    }
    return arrays, metrics


class Federation:
    """A strategy, and clients that answer with what they are given."""

    def __init__(self, name, updates, fraction=1.0, seed=0, num_rounds=10, options=None, **setup):
        self.updates = updates
        self.received = GLOBAL
        app = ClientApp()
        num = len(updates)

        @app.query()
        def query(message, context):
            number = context.node_config["partition-id"]
            metrics = MetricRecord({wire.PARTITION_ID: number})
            return Message(RecordDict({wire.METRICS: metrics}), reply_to=message)

        @app.train()
        def train(message, context):
            answer = self.updates[context.node_config["partition-id"]]
            if isinstance(answer, Exception):
                raise answer
            arrays, metrics = answer
            content = RecordDict({wire.ARRAYS: record(arrays), wire.METRICS: MetricRecord(metrics)})
            return Message(content, reply_to=message)

        self.grid = InProcessGrid(app, num)
        config = StrategyConfig(name=name, fraction_train=fraction, **(options or {}))
        setup = {"buffers": BUFFERS, **setup}
        self.strategy = make_strategy(config, Setup(num, num_rounds, seed, fraction, **setup))

    def replies(self, number=1):
        """What comes back for the received student."""
        sent = record(self.received)
        messages = self.strategy.configure_train(number, sent, ConfigRecord(), self.grid)
        return list(self.grid.send_and_receive(messages))

    def round(self, number=1, reverse=False):
        """The new student, by name."""
        replies = self.replies(number)
        arrays, _ = self.strategy.aggregate_train(number, replies[::-1] if reverse else replies)
        return {name: array.numpy() for name, array in arrays.items()}

    def by_flower(self, flowers, names=("w",), number=1):
        """What one of Flower's strategies makes of the same replies, some of their arrays."""
        replies = self.replies(number)
        for reply, (arrays, metrics) in zip(replies, self.updates, strict=True):
            shown = {
                "num-examples": metrics[wire.NUM_EXAMPLES],
                "train_loss": metrics[wire.SUM + "loss"] / metrics[wire.NUM_SEEN],
            }
            arrays = record({name: arrays[name] for name in names})
            reply.content = RecordDict({wire.ARRAYS: arrays, wire.METRICS: MetricRecord(shown)})
        arrays, _ = flowers.aggregate_train(number, replies)
        return {name: array.numpy() for name, array in arrays.items()}

    def weights(self, number=1):
        self.round(number)
        return [report.weight for report in self.strategy.reports]

    def told(self, number=1):
        """The config that goes to the clients."""
        config = ConfigRecord()
        self.strategy.configure_train(number, record(self.received), config, self.grid)
        return dict(config)

    def scoring_rounds(self, num_rounds):
        """Rounds in which clients are told to send class scores."""
        numbers = range(1, num_rounds + 1)
        return [number for number in numbers if self.told(number)[wire.SCORE_CLASSES]]
