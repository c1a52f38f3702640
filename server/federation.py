"""The server's side of a federation: rounds of sampling, training and aggregation over a Grid."""

import logging
import time
from collections.abc import Mapping

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid

from fedkd import wire
from fedkd.experiment import Experiment, HeldOut
from fedkd.prediction import Probabilities
from server.asking import Asker
from server.checkpoint import Checkpoints
from server.evaluation import Arrays, assemble
from server.round_replies import RoundReplies
from server.scoreboard import Observer, Scoreboard
from strategies.base import ClientReport, Metrics, SeededStrategy, Setup
from strategies.factory import make_strategy

logger = logging.getLogger(__name__)


def run_federation(
    grid: Grid,
    experiment: Experiment,
    initial: Arrays,
    observer: Observer | None = None,
    nodes: Mapping[int, int] | None = None,
    checkpoints: Checkpoints | None = None,
    replies: RoundReplies | None = None,
) -> tuple[Scoreboard, Arrays]:
    """Run all rounds, then test the student that was chosen on val.

    Flower's ``Strategy.start`` is not used: it has no place for evaluation by round, for
    checkpoints or for a stop when a client fails.

    Args:
        grid: Reaches the clients.
        experiment: What is run.
        initial: The initial student, and initial tensors that clients share.
        observer: Told how it goes.
        nodes: Node of each partition; None means that the roll is still to be called.
        checkpoints: Written as the run goes, and read by one that goes on; None writes none.
        replies: Of the round under way, from before the run was interrupted.

    Returns:
        The scores and rows, and the final global arrays.

    Raises:
        ClientFailure: Clients failed, and the recipe does not go on without them.
        UpdateRefused: A client's reply may not be used, and the recipe does not go on without.
    """
    recipe = experiment.recipe
    if recipe.faults.is_given:
        logger.warning("simulated trouble: %s", recipe.faults.in_words())
    strategy = make_strategy(recipe.strategy, _setup(experiment))
    if nodes is None:
        strategy.call_roll(grid)
    else:
        strategy.know(nodes)

    def predict(split: HeldOut, student: Arrays, round_number: int) -> Probabilities:
        return _ask_clients(asker, grid, strategy, experiment, split, student, round_number)

    board = Scoreboard(experiment, predict if experiment.predicts_locally else None)
    asker = Asker(grid, strategy, experiment, board, observer, replies)

    def replied(round_number: int, sent: Arrays) -> frozenset[int]:
        named = {name: t.numpy() for name, t in sent.items()}
        return replies.clients(round_number, named) if replies else frozenset()

    begun = checkpoints.restore(board, initial, observer, replied) if checkpoints else None
    tensors = begun.arrays if begun else initial
    if begun:
        strategy.load_state(begun.strategy)
    arrays = ArrayRecord(tensors)
    for number in range(len(board.rounds) + 1, recipe.num_rounds + 1):
        if board.is_exhausted:
            break
        if observer:
            observer.round_started(number)
        started = time.perf_counter()
        config = ConfigRecord({wire.BEST_ROUND: board.best_round})
        if experiment.is_at_hospitals:
            config[wire.AT_HOSPITALS] = True
        messages = list(strategy.configure_train(number, arrays, config, grid))
        aggregated = asker.aggregate(asker.train(messages, number), number)
        reports: list[tuple[float, Metrics]] = []
        if aggregated is not None:
            arrays = aggregated
            tensors = dict(arrays.to_torch_state_dict())
            reports = [_with_traffic(report) for report in strategy.reports]
        board.record(number, tensors, reports, time.perf_counter() - started, asker.num_failed)
        if observer:
            observer.round_finished(board)
        if checkpoints and checkpoints.save(number, tensors, board, strategy.state()) and replies:
            replies.clear()
    board.finish()
    return board, tensors


def _setup(experiment: Experiment) -> Setup:
    recipe = experiment.recipe
    student = experiment.build_student()
    training = recipe.training
    afresh = training.optimizer == "sgd" and not training.keep_optimizer_state
    return Setup(
        num_clients=experiment.num_clients,
        num_rounds=recipe.num_rounds,
        seed=recipe.seed,
        fraction_train=recipe.strategy.fraction_train,
        buffers=frozenset(name for name, _ in student.named_buffers()),
        momentum=training.momentum if afresh else 0.0,
        proximal_mu=recipe.fedprox.mu,
        prompts_by_examples=recipe.prompts.shared == "by_examples",
        privacy=recipe.privacy,
        num_classes=experiment.num_classes,
        num_held_out=_num_held_out(experiment),
        max_update_norm=recipe.failures.max_update_norm,
        joins=experiment.faults.joins,
        leaves=experiment.faults.leaves,
    )


def _num_held_out(experiment: Experiment) -> dict[str, list[int]]:
    own = experiment.recipe.evaluation.personalised or experiment.predicts_locally
    if experiment.is_at_hospitals or not own:
        return {}
    return {split: list(map(len, rows)) for split, rows in experiment.held_out_rows.items()}


def _with_traffic(report: ClientReport) -> tuple[float, Metrics]:
    traffic = {wire.BYTES_DOWN: report.bytes_down, wire.BYTES_UP: report.bytes_up}
    return report.weight, {**report.metrics, **traffic}


def _ask_clients(
    asker: Asker,
    grid: Grid,
    strategy: SeededStrategy,
    experiment: Experiment,
    split: HeldOut,
    student: Arrays,
    round_number: int,
) -> Probabilities:
    """Predictions of a split by the clients, each with its own tensors as of a round."""
    config = ConfigRecord({wire.SPLIT: split, wire.AS_OF_ROUND: round_number})
    messages = strategy.configure_evaluate(round_number, ArrayRecord(student), config, grid)
    strategy.aggregate_evaluate(round_number, asker.evaluate(messages, round_number, split))
    return assemble(experiment, split, strategy.evaluations)
