"""The same method on the pooled images in a plain loop that knows no Flower.

It is the baseline that a federation is measured against, and the oracle for one client: a
federation of one must end with the same bits.
"""

import time

from clients.node import Node, State
from fedkd.experiment import Experiment
from server.scoreboard import Arrays, Observer, Scoreboard


def run_centralized(
    experiment: Experiment, node: Node, observer: Observer | None = None
) -> tuple[Scoreboard, Arrays]:
    """Train on all images, ``num_rounds`` times ``local_epochs``; see ``run_federation``.

    Args:
        experiment: Opened with ``num_clients = 1``.
        node: The node that trains.
        observer: Told how it goes.
    """
    assert experiment.num_clients == 1, "centralized training pools all images"
    board = Scoreboard(experiment)
    arrays = node.initial_arrays()
    state: State = {}
    for number in range(1, experiment.recipe.num_rounds + 1):
        if observer:
            observer.round_started(number)
        started = time.perf_counter()
        reply, state = node.train(0, arrays, state, number)
        arrays = reply.arrays
        board.record(number, arrays, [(1.0, reply.metrics)], time.perf_counter() - started)
        if observer:
            observer.round_finished(board)
    board.finish()
    return board, arrays
