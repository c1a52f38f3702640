"""The Flower ServerApp: opens the recipe and runs its federation over the Grid that it is given."""

from collections.abc import Callable
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from clients.node import Node
from fedkd import config
from fedkd.experiment import open_experiment
from fedkd.recipe import Recipe
from server.federation import run_federation
from server.results import RunDirectory
from server.tracking.everybody import Everybody, make_trackers


def make_app(run: Callable[[Grid, Context], None]) -> ServerApp:
    """A ServerApp that calls ``run`` once with its Grid."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run(grid, context)

    return app


def _run_recipe(grid: Grid, context: Context) -> None:
    """Run the recipe that the run config names, and leave a run directory."""
    recipe = config.load(Recipe, Path(str(context.run_config["config"])))
    experiment = open_experiment(recipe)
    trackers = make_trackers(recipe.tracking)
    with (
        RunDirectory.create(experiment, "federated") as results,
        Everybody(experiment, "federated", results, trackers) as observer,
    ):
        initial = Node(experiment).initial_arrays()
        board, arrays = run_federation(grid, experiment, initial, observer)
        observer.run_ended(board, results.finish(board, arrays))


app = make_app(_run_recipe)
