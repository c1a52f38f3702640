"""What every strategy shares: seeded sampling, replies in order, checks, dtypes, buffers.

The arithmetic is Flower's own. A strategy here wraps one of Flower's and feeds it replies that are
sorted by partition id, checked, and weighted by a number that stays apart from the metrics.

Buffers of the student (BatchNorm's running means and variances) are measurements, not weights. A
rule that averages or picks clients treats them like weights; an optimiser on the server never steps
on them: a step may make a variance negative. Beside an optimiser they become the clients' average
by numbers of images. Integers are shown to no rule: the largest is kept, or under privacy the one
that was sent, as nothing of the clients' is released.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy

from fedkd import seeding, wire
from fedkd.aggregation import PrivacyConfig
from fedkd.data.images import Integers
from fedkd.errors import ClientFailure, UpdateRefused
from fedkd.simulated_faults import present
from strategies.arrays import HeldArray, HeldRecord
from strategies.guard import Checked, Limits, is_finite
from strategies.guard import Metrics as Metrics
from strategies.privacy import PrivateStrategy, with_privacy
from strategies.replies import Replies, answers_of, by_number, num_bytes
from strategies.roll import call_roll

logger = logging.getLogger(__name__)

WEIGHT = "weight"


@dataclass(frozen=True)
class ClientReport:
    """What one client contributed to a round.

    Attributes:
        partition_id: Which client.
        weight: Its share of the aggregate; the weights of a round sum to 1.
        metrics: What it sent, by the keys of :mod:`fedkd.wire`.
        bytes_down: Bytes of the values of all tensors that were sent to it.
        bytes_up: Bytes of the values of all tensors that it sent, and 8 for each number of its
            metrics.
    """

    partition_id: int
    weight: float
    metrics: Metrics
    bytes_down: int
    bytes_up: int


@dataclass(frozen=True)
class Setup:
    """What every strategy is told.

    Attributes:
        num_clients: Clients to wait for.
        num_rounds: Rounds of the whole run.
        seed: The experiment's seed.
        fraction_train: Fraction of the clients that train in a round.
        buffers: Names of the student's tensors that are no parameters.
        momentum: Momentum of the clients' optimiser where it is SGD that starts afresh in every
            round, otherwise 0.
        proximal_mu: Weight of the proximal term of strategy fedprox.
        prompts_by_examples: Average what clients share of their prompts by their numbers of images
            instead of by the weights of the strategy. Either way it is a plain average, whatever
            the strategy does with the student: prompts follow no server optimiser.
        privacy: Noise on the aggregate.
        num_classes: Of the task; None leaves the lengths of what is per class unchecked.
        num_held_out: For val and test how many of its images each client predicts, where it does.
        max_update_norm: Updates that are longer are refused; None refuses none for its length.
        joins: First round of clients that are not there from the start, by partition id.
        leaves: Round from which on a client is gone, by partition id.
    """

    num_clients: int
    num_rounds: int
    seed: int
    fraction_train: float = 1.0
    buffers: frozenset[str] = frozenset()
    momentum: float = 0.0
    proximal_mu: float = 0.0
    prompts_by_examples: bool = False
    privacy: PrivacyConfig = PrivacyConfig()
    num_classes: int | None = None
    num_held_out: Mapping[str, Sequence[int]] = field(default_factory=dict)
    max_update_norm: float | None = None
    joins: Mapping[int, int] = field(default_factory=dict)
    leaves: Mapping[int, int] = field(default_factory=dict)

    @property
    def cohort(self) -> int:
        """Clients that train in a round, at least one; in the smallest, where some come or go."""
        changes = {1, *self.joins.values(), *self.leaves.values()}
        return min(self.cohort_of(self.present(n)) for n in changes if n <= self.num_rounds)

    def present(self, server_round: int) -> Integers:
        """Partition ids of the clients that are there in a round, ascending."""
        return present(server_round, self.num_clients, self.joins, self.leaves)

    def cohort_of(self, clients: Integers) -> int:
        """How many of these clients train in a round, at least one."""
        return max(1, round(len(clients) * self.fraction_train))


class SeededStrategy(Strategy):
    """A strategy whose clients are drawn by partition id and whose replies are summed in order.

    Subclasses say how clients are weighed (:meth:`weigh`), and may leave clients out
    (:meth:`select`) or choose another of Flower's strategies for the arithmetic.

    Args:
        setup: What every strategy is told.
        inner: Flower's strategy that sums arrays; it must weigh by the key ``"weight"``.
        optimises: ``inner`` is an optimiser: it gets the parameters alone, and buffers are averaged
            by numbers of images. Whatever an optimiser must know of the students that the clients
            had received, :meth:`prepare` tells it.
    """

    def __init__(
        self, setup: Setup, *, inner: Strategy | None = None, optimises: bool = False
    ) -> None:
        self.setup = setup
        self.num_clients = setup.num_clients
        self.num_rounds = setup.num_rounds
        self.reports: list[ClientReport] = []
        self.evaluations: dict[int, Metrics] = {}
        self._inner = with_privacy(
            inner or FedAvg(weighted_by_key=WEIGHT),
            setup.privacy,
            setup.seed,
            setup.cohort,
            lambda: self._received,
        )
        self._plain = FedAvg(weighted_by_key=WEIGHT)
        self._optimises = optimises
        self._nodes: dict[int, int] = {}
        self._received: dict[str, npt.NDArray[Any]] = {}
        self._round = 0
        self._limits = Limits(
            setup.num_classes, setup.num_held_out, setup.max_update_norm, setup.buffers
        )
        # By id of the reply, which is kept with it: a reply that was looked at is not read again.
        self._checked: dict[int, tuple[Message, Checked]] = {}

    def weigh(self, metrics: Sequence[Metrics], server_round: int) -> list[float]:
        """One non-negative weight for each client; only their ratios matter.

        Args:
            metrics: What each client sent, by the keys of :mod:`fedkd.wire`.
            server_round: From 1.
        """
        raise TypeError(f"{type(self).__name__} must say how it weighs clients")

    def select(self, updates: Sequence[npt.NDArray[np.float64]]) -> Sequence[int]:
        """Which of the clients enter the aggregate; the weights of the others become 0.

        Args:
            updates: For each client all its parameters minus those that it received, as one vector,
                float64 (num_parameters,).
        """
        return range(len(updates))

    def scores_classes(self, server_round: int) -> bool:
        """Whether clients must send the losses per class of the student that they received."""
        return False

    def needs(self, server_round: int) -> tuple[str, ...]:
        """Metrics that :meth:`weigh` reads, beside those that every client must send."""
        scored = (wire.CLASS_COUNTS, wire.CLASS_SCORES, wire.CLASS_LOSSES)
        return scored if self.scores_classes(server_round) else ()

    def instructions(self) -> dict[str, float]:
        """What clients are told besides, by the keys of :mod:`fedkd.wire`."""
        return {}

    def prepare(self, received: ArrayRecord, metrics: Sequence[Metrics]) -> None:
        """Called before Flower's strategy sums, for one that must know more than the replies.

        Args:
            received: What the clients had received, of what Flower's strategy is to sum, in the
                order in which it sees it.
            metrics: What each client sent; clients that weigh 0 are among them.
        """

    def shown(self, metrics: Metrics) -> dict[str, float]:
        """Numbers of one client that Flower's strategy reads besides the weight."""
        return {}

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """What it remembers from one round to the next, by name; empty before its first use.

        All else is derived from the round's number. Given to :meth:`load_state` of a fresh strategy
        of the same setup, the next rounds have the same bits.
        """
        return self._inner.state() if isinstance(self._inner, PrivateStrategy) else {}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from what :meth:`state` gave."""
        if isinstance(self._inner, PrivateStrategy):
            self._inner.load_state(state)

    @property
    def partition_ids(self) -> dict[int, int]:
        """Partition id of each node that answered the roll call."""
        return {node: number for number, node in self._nodes.items()}

    def check(self, reply: Message) -> None:
        """Look whether a client's answer to this round's message may be aggregated.

        :meth:`aggregate_train` checks all; this is for who would rather leave one out.

        Raises:
            UpdateRefused: Something is wrong with it; see :mod:`strategies.guard`.
        """
        self._check(reply, self.partition_ids[reply.metadata.src_node_id])

    def check_evaluation(self, reply: Message, split: str | None = None) -> None:
        """The same for an answer to an evaluation message.

        Raises:
            UpdateRefused: Something is wrong with it.
        """
        number = self.partition_ids[reply.metadata.src_node_id]
        self._limits.check_evaluation(reply, number, split)

    def _check(self, reply: Message, number: int) -> Checked:
        known, checked = self._checked.get(id(reply), (None, None))
        if known is not reply or checked is None:
            needed = self.needs(self._round)
            checked = self._limits.check_training(reply, number, self._received, needed)
            self._checked[id(reply)] = (reply, checked)
        return checked

    def call_roll(self, grid: Grid, timeout_s: float = 300.0) -> None:
        """Wait for all clients and learn which node has which partition (``strategies.roll``)."""
        answers = call_roll(grid, self.num_clients, timeout_s)
        self.know({number: reply.metadata.src_node_id for number, reply in answers.items()})

    def know(self, nodes: Mapping[int, int]) -> None:
        """Take over which node has which partition from a roll that was called before."""
        self._nodes = dict(nodes)

    def sample(self, server_round: int) -> list[int]:
        """Partition ids that train in a round, of those present, sorted; at least one."""
        rng = seeding.rng(self.setup.seed, "sample", server_round)
        there = self.setup.present(server_round)
        drawn = there[rng.choice(len(there), size=self.setup.cohort_of(there), replace=False)]
        return sorted(drawn.tolist())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages to the sampled clients, in partition order."""
        if not self._nodes:
            self.call_roll(grid)
        # Kept to compare the replies with: names, shapes and dtypes must be what was sent.
        self._received = {name: array.numpy() for name, array in arrays.items()}
        self._round, self._checked = server_round, {}
        config[wire.ROUND] = server_round
        config[wire.SCORE_CLASSES] = self.scores_classes(server_round)
        for key, value in self.instructions().items():
            config[key] = value
        content = RecordDict({wire.ARRAYS: arrays, wire.CONFIG: config})
        return [
            Message(
                content=content,
                message_type=MessageType.TRAIN,
                dst_node_id=self._nodes[number],
                group_id=str(server_round),
            )
            for number in self.sample(server_round)
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """The new global arrays; what each client sent is left in :attr:`reports`.

        Raises:
            ClientFailure: A client raised; its name and traceback are in the text.
            UpdateRefused: A reply may not be used (:mod:`strategies.guard`), or all together may
                not: too few for the strategy, or a step of the server's to what is not finite. The
                strategy is then as it was before.
        """
        numbers = self.partition_ids
        answers = by_number(answers_of(replies, numbers), numbers)
        if not answers:
            raise ClientFailure(f"no client replied in round {server_round}")
        checked = [self._check(reply, number) for number, reply in answers.items()]
        self._checked = {}
        # Flower's optimisers replace what they remember, and never write into it.
        before = dict(vars(self._inner))
        try:
            arrays = self._aggregate(server_round, list(answers.values()), checked)
        except UpdateRefused:
            vars(self._inner).clear()
            vars(self._inner).update(before)
            raise
        return arrays, MetricRecord()

    def _aggregate(
        self, server_round: int, answers: Sequence[Message], checked: Sequence[Checked]
    ) -> ArrayRecord:
        metrics = [one.metrics for one in checked]
        updates = [one.update for one in checked]
        weights = self._weights(metrics, updates, server_round)
        total = _total(weights)
        down = sum(values.nbytes for values in self._received.values())
        self.reports = [
            ClientReport(cast(int, m[wire.PARTITION_ID]), w / total, m, down, num_bytes(m, update))
            for m, w, update in zip(metrics, weights, updates, strict=True)
        ]
        averaged = {n for n, v in self._received.items() if not np.issubdtype(v.dtype, np.integer)}
        prompts = {name for name in averaged if name.startswith(wire.PROMPTS)}
        buffers = (averaged - prompts) & self.setup.buffers if self._optimises else set()
        students = averaged - prompts - buffers
        told = Replies(answers, updates, metrics)
        images = [float(m[wire.NUM_EXAMPLES]) for m in metrics]
        summed: dict[str, Array] = {}
        if students:
            self.prepare(_only(self._received, students), metrics)
            summed |= self._sum(self._inner, server_round, told, students, weights)
        if buffers:
            summed |= self._sum(self._plain, server_round, told, buffers, images)
        if prompts:
            by_examples = self.setup.prompts_by_examples
            weights = images if by_examples else weights
            _total(weights)
            summed |= self._sum(self._plain, server_round, told, prompts, weights)
        return self._complete(summed, updates)

    def _weights(
        self, metrics: Sequence[Metrics], updates: Sequence[ArrayRecord], server_round: int
    ) -> list[float]:
        """Weight of each client; 0 for those that have seen no image or are not selected."""
        try:
            weights = self.weigh(metrics, server_round)
        except OverflowError as error:
            raise UpdateRefused(f"what clients sent gives no weights: {error}") from None
        # Under privacy all clients of the round stay in the denominator: noise reckons with it.
        private = self.setup.privacy.name != "none"
        trained = [n for n, m in enumerate(metrics) if m[wire.NUM_EXAMPLES] or private]
        if type(self).select is not SeededStrategy.select:
            vectors = [self._difference(updates[number]) for number in trained]
            trained = [trained[index] for index in self.select(vectors)]
        return [weight if number in trained else 0.0 for number, weight in enumerate(weights)]

    def _difference(self, update: ArrayRecord) -> npt.NDArray[np.float64]:
        return np.concatenate(
            [
                np.asarray(update[name].numpy(), np.float64).ravel() - np.ravel(received)
                for name, received in self._received.items()
                if name not in self.setup.buffers and not name.startswith(wire.PROMPTS)
            ]
        )

    def _sum(
        self,
        inner: Strategy,
        server_round: int,
        replies: Replies,
        names: Collection[str],
        weights: Sequence[float],
    ) -> dict[str, Array]:
        """Some of the arrays, as one of Flower's strategies sums them.

        Clients of weight 0 are not shown to it: a median or an optimiser would count them.
        """
        shown = []
        for reply, update, m, weight in zip(*replies, weights, strict=True):
            if not weight:
                continue
            # Flower weighs and averages metrics by one key; the metrics stay out of its sight.
            reply.content = RecordDict(
                {
                    wire.ARRAYS: HeldRecord({n: update[n] for n in update if n in names}),
                    wire.METRICS: MetricRecord({WEIGHT: weight, **self.shown(m)}),
                }
            )
            shown.append(reply)
        with _quiet(logging.getLogger("flwr")):
            summed, _ = inner.aggregate_train(server_round, shown)
        assert summed is not None, "Flower refused replies that were checked"
        return dict(summed.items())

    def _complete(self, summed: Mapping[str, Array], updates: Sequence[ArrayRecord]) -> ArrayRecord:
        """Put back dtypes, and integers: a count is not averaged but the largest one is kept."""
        complete = ArrayRecord()
        for name, expected in self._received.items():
            integer = np.issubdtype(expected.dtype, np.integer)
            if integer and self.setup.privacy.name != "none":
                values = expected
            elif integer:
                values = np.max([update[name].numpy() for update in updates], axis=0)
            else:
                values = summed[name].numpy()
            values = np.asarray(values, dtype=expected.dtype)
            if not is_finite(values):
                raise _own_step(f"values of {name}")
            complete[name] = HeldArray(values)
        # A second moment of inf makes steps of 0, for ever: the student alone would not show it.
        for memory in vars(self._inner).values():
            kept = memory.values() if isinstance(memory, dict) else memory
            if isinstance(memory, dict | list) and not all(
                is_finite(one) for one in kept if isinstance(one, np.ndarray)
            ):
                raise _own_step("updates")
        return complete

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages to all clients, in partition order, that ask for predictions."""
        content = RecordDict({wire.ARRAYS: arrays, wire.CONFIG: config})
        return [
            Message(
                content=content,
                message_type=MessageType.EVALUATE,
                dst_node_id=node,
                group_id=str(server_round),
            )
            for _, node in sorted(self._nodes.items())
        ]

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing is averaged; what each client sent is left in :attr:`evaluations`.

        Raises:
            ClientFailure: A client raised or did not answer; its name and traceback are in the
                text.
            UpdateRefused: A reply may not be used.
        """
        numbers = self.partition_ids
        answers = by_number(answers_of(replies, numbers), numbers)
        self.evaluations = {
            number: self._limits.check_evaluation(reply, number)
            for number, reply in answers.items()
        }
        if missing := sorted(set(self._nodes) - set(self.evaluations)):
            raise ClientFailure(f"clients {missing} did not evaluate in round {server_round}")
        return None

    def summary(self) -> None:
        """Log what this strategy does."""
        logger.info("%s over %d clients", type(self).__name__, self.num_clients)


def _only(arrays: Mapping[str, npt.NDArray[Any]], names: Collection[str]) -> ArrayRecord:
    return HeldRecord({n: HeldArray(values) for n, values in arrays.items() if n in names})


def _own_step(what: str) -> UpdateRefused:
    return UpdateRefused(
        f"all clients sent finite {what}, but the server's own step made some that are not; lower "
        "strategy.server_learning_rate, strategy.client_learning_rate or privacy.noise_multiplier"
    )


def _total(weights: Sequence[float]) -> float:
    """Their sum; an UpdateRefused if they cannot be divided by it."""
    total = sum(weights)
    if not np.isfinite(total) or total <= 0 or min(weights) < 0:
        raise UpdateRefused(f"the clients' weights {weights} cannot be normalised")
    return total


@contextmanager
def _quiet(flower: logging.Logger) -> Iterator[None]:
    """Keep Flower from announcing each sum of arrays; its warnings still come through."""
    level = flower.level
    flower.setLevel(logging.WARNING)
    try:
        yield
    finally:
        flower.setLevel(level)
