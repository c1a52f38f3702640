"""The Flower ServerApp: opens the recipe and runs its federation over the Grid that it is given."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from clients.node import Node
from fedkd import config, wire
from fedkd.errors import ClientFailure, ConfigError
from fedkd.experiment import Experiment, open_experiment
from fedkd.paths import find_recipe
from fedkd.recipe import Recipe
from fedkd.site import SiteAnswer, open_server
from server.engines.watched_grid import WatchedGrid
from server.failures import broken
from server.federation import run_federation
from server.progress import TerminalProgress
from server.results import RunDirectory
from server.tables import print_results
from server.terminal import log_to_stderr, stderr
from server.tracking.everybody import Everybody, make_trackers
from strategies.roll import call_roll

ROLL_S = 3600.0
"""Seconds for hospitals to connect, and to open their images: the first decoding takes long."""

_POLL_S = 0.5
_LOST = "its SuperNode has gone, or the network to it is cut; start it again, or mend that"

logger = logging.getLogger(__name__)


def make_app(run: Callable[[Grid, Context], None]) -> ServerApp:
    """A ServerApp that calls ``run`` once with its Grid."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run(grid, context)

    return app


def _run_recipe(grid: Grid, context: Context) -> None:
    """Run the recipe that the run config names, and leave a run directory."""
    log_to_stderr()
    # Flower sends this log away by httpx, which logs each time that it does.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("flwr").propagate = False
    recipe = config.load(Recipe, find_recipe(str(context.run_config["config"])))
    # Whoever reads the run directory is to know where it ran: not where the recipe would have run.
    engine = recipe.engine.model_copy(update={"name": "flower"})
    recipe = recipe.model_copy(update={"engine": engine})
    stop = recipe.failures.policy == "stop"
    grid = WatchedGrid(grid, lambda: None, _LOST, poll_s=_POLL_S, stop_at_failure=stop)
    if recipe.engine.num_threads:
        torch.set_num_threads(recipe.engine.num_threads)
    folder = str(context.run_config.get("server-data", ""))
    nodes = None
    if folder:
        nodes, experiment = _of_hospitals(grid, recipe, Path(folder))
    else:
        experiment = open_experiment(recipe)
    trackers = make_trackers(recipe.tracking)
    output = str(context.run_config.get("output", ""))
    with (
        RunDirectory.create(experiment, "federated", Path(output) if output else None) as results,
        TerminalProgress(stderr(), experiment) as progress,
        Everybody(experiment, "federated", results, [*trackers, progress]) as observer,
    ):
        logger.info("run directory %s", results.path.resolve())
        initial = Node(experiment).initial_arrays()
        board, arrays = run_federation(grid, experiment, initial, observer, nodes)
        observer.run_ended(board, results.finish(board, arrays))
    print_results(stderr(), board)
    if board.kept_rounds:
        raise ClientFailure(broken(board.kept_rounds))


def _of_hospitals(grid: Grid, recipe: Recipe, folder: Path) -> tuple[dict[int, int], Experiment]:
    """Call the roll of hospitals that have images of their own, and open the server's.

    Returns:
        The node of each partition, and the experiment.
    """
    nodes, answers = {}, {}
    for number, reply in call_roll(grid, recipe.num_clients, ROLL_S, describe=True).items():
        numbers = reply.content.metric_records[wire.METRICS]
        if wire.TRAIN_COUNTS not in numbers:
            raise ConfigError(
                f"client {number} has no data-path, but server-data is {str(folder)!r}; start "
                "every SuperNode with its own data-path in --node-config, or leave server-data out"
            )
        nodes[number] = reply.metadata.src_node_id
        answers[number] = SiteAnswer.read(numbers, reply.content.config_records[wire.CONFIG])
    return nodes, open_server(recipe, answers, folder)


app = make_app(_run_recipe)
