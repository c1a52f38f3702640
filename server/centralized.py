"""The same method on the pooled images in a plain loop that knows no Flower.

It is the baseline that a federation is measured against, and the oracle for one client: a
federation of one must end with the same bits.
"""

import logging
import time

from clients import state_folder
from clients.node import Node, State
from fedkd.errors import ConfigError
from fedkd.experiment import Experiment, HeldOut
from fedkd.prediction import Probabilities
from server.checkpoint import Checkpoints
from server.evaluation import Arrays
from server.scoreboard import Observer, Scoreboard

logger = logging.getLogger(__name__)


def run_centralized(
    experiment: Experiment,
    node: Node,
    observer: Observer | None = None,
    checkpoints: Checkpoints | None = None,
) -> tuple[Scoreboard, Arrays]:
    """Train on all images, ``num_rounds`` times ``local_epochs``; see ``run_federation``.

    There is no strategy: an optimiser on the server does not step. What strategy fedprox adds to
    the clients' loss is added here too.

    Args:
        experiment: Opened with ``num_clients = 1``.
        node: The node that trains.
        observer: Told how it goes.
        checkpoints: Written as the run goes, and read by one that goes on; None writes none.

    Raises:
        ConfigError: The recipe asks for noise, which is added where students are aggregated, or for
            trouble that only clients have.
    """
    recipe = experiment.recipe
    assert experiment.num_clients == 1, "centralized training pools all images"
    if recipe.privacy.name != "none":
        raise ConfigError(
            f"privacy.name is {recipe.privacy.name!r}, but centralized training aggregates nothing "
            "to which noise could be added; set privacy.name=none"
        )
    faults = recipe.faults
    absent = [k for k in ("dropout", "joins", "leaves", "byzantine") if getattr(faults, k)]
    if absent:
        raise ConfigError(
            f"{', '.join(f'faults.{key}' for key in absent)} is given, but centralized training "
            "has no clients that could be away or send anything; leave it out"
        )
    if faults.is_given:
        logger.warning("simulated trouble: %s", faults.in_words())
    # The one strategy that changes what a client minimises.
    mu = recipe.fedprox.mu if recipe.strategy.name == "fedprox" else 0.0
    state: State = {}

    def ask(split: HeldOut, student: Arrays, round_number: int) -> Probabilities:
        return node.evaluate(0, student, state, round_number, split)

    board = Scoreboard(experiment, ask if experiment.predicts_locally else None)
    arrays = node.initial_arrays()
    if checkpoints and (begun := checkpoints.restore(board, arrays, observer)):
        arrays = begun.arrays
        state = state_folder.load(checkpoints.states, 0, begun.round + 1)
    for number in range(len(board.rounds) + 1, recipe.num_rounds + 1):
        if board.is_exhausted:
            break
        if observer:
            observer.round_started(number)
        started = time.perf_counter()
        reply, state = node.train(
            0, arrays, state, number, best_round=board.best_round, proximal_mu=mu
        )
        arrays = reply.arrays
        board.record(number, arrays, [(1.0, reply.metrics)], time.perf_counter() - started)
        if observer:
            observer.round_finished(board)
        if checkpoints:
            checkpoints.save(number, arrays, board, pooled=state)
    board.finish()
    return board, arrays
