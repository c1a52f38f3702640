"""``simulate``: a whole federation, or its centralized baseline, in one call."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from flwr.app import Context
from flwr.serverapp import Grid

from clients.node import Folders
from clients.state_folder import STATES
from fedkd import config as configs
from fedkd.data.images import LabelledImages
from fedkd.experiment import Experiment, InitialStudent, open_experiment
from fedkd.models.student import Student
from fedkd.recipe import Recipe
from fedkd.teachers.opening import GivenTeacher
from server.centralized import run_centralized
from server.engines.clients import Clients
from server.engines.factory import make_engine
from server.evaluation import Arrays
from server.federation import run_federation
from server.kept_students import STUDENTS
from server.opened_run import PROMPTS
from server.results import Mode, RunDirectory, summarise
from server.scoreboard import Observer, Scoreboard
from server.tracking.everybody import Everybody, make_trackers


@dataclass(frozen=True)
class Simulation:
    """What a run gives.

    Attributes:
        rounds: A row per round: losses, val scores, seconds.
        clients: A row per client and round: losses, examples, weight, seconds.
        summary: What ``summary.json`` holds: hashes, best round, val and test scores.
        student: The final global student, in eval mode.
        board: Val and test scores, the student that was tested, and its predictions.
        path: The run directory; None if none was asked for.
    """

    rounds: pd.DataFrame
    clients: pd.DataFrame
    summary: dict[str, Any]
    student: Student
    board: Scoreboard
    path: Path | None


def simulate(
    config: Recipe | Mapping[str, Any] | Path | str,
    sites: Sequence[LabelledImages] | None = None,
    val: LabelledImages | None = None,
    test: LabelledImages | None = None,
    teacher: GivenTeacher | None = None,
    initial_student: InitialStudent | None = None,
    *,
    centralized: bool = False,
    output: Path | str | None = None,
    observers: Sequence[Observer] = (),
) -> Simulation:
    """Run the federation that a config describes, on the engine that it names.

    Args:
        config: A recipe, the values of one as a dict, or the path of a TOML file.
        sites: Training images of each hospital, instead of ``config.data``; ``val`` and ``test``
            are then needed too.
        val: Images to select on.
        test: Images to report on.
        teacher: A module that maps pixels, as the student gets them, to features (batch, D),
            instead of ``config.teacher``; a sequence has one for each hospital. Copied and frozen.
        initial_student: Initial weights: a module or a state dict with the student's names.
        centralized: Pool all images and train in a plain loop, without Flower.
        output: Folder for a run directory; None writes nothing.
        observers: Told how it goes, beside the trackers that ``tracking`` names.

    Raises:
        FedkdError: Anything in the config or the data that does not fit, before training starts.
        ClientFailure: A client raised while training.
    """
    recipe = _recipe(config)
    if centralized:
        recipe = recipe.model_copy(update={"num_clients": 1})
    experiment = open_experiment(
        recipe, sites=sites, val=val, test=test, teacher=teacher, initial_student=initial_student
    )
    return run(experiment, centralized=centralized, output=output, observers=observers)


def run(
    experiment: Experiment,
    *,
    centralized: bool = False,
    output: Path | str | None = None,
    observers: Sequence[Observer] = (),
) -> Simulation:
    """Run an experiment that is open already; see :func:`simulate`."""
    threads = experiment.recipe.engine.num_threads
    mode: Mode = "centralized" if centralized else "federated"
    # Before the run directory is made: a package may be missing.
    everybody = [*make_trackers(experiment.recipe.tracking), *observers]
    with ExitStack() as stack:
        if threads:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
        results = None
        if output is not None:
            results = stack.enter_context(RunDirectory.create(experiment, mode, Path(output)))
        observer = stack.enter_context(Everybody(experiment, mode, results, everybody))
        folders = Folders()
        if results:
            states = results.path / STATES if experiment.recipe.checkpoint.every else None
            folders = Folders(results.path / PROMPTS, results.path / STUDENTS, states)
        clients = Clients(experiment, observer.client_progress, folders)
        if centralized:
            board, arrays = run_centralized(experiment, clients.node, observer)
        else:
            board, arrays = _run_federated(experiment, clients, observer)
        summary = results.finish(board, arrays) if results else summarise(board, arrays, mode)
        observer.run_ended(board, summary)
    return Simulation(
        rounds=pd.DataFrame(board.rounds),
        clients=pd.DataFrame(board.clients),
        summary=summary,
        student=board.final_student(arrays),
        board=board,
        path=results.path if results else None,
    )


def _recipe(config: Recipe | Mapping[str, Any] | Path | str) -> Recipe:
    if isinstance(config, Recipe):
        return config
    if isinstance(config, Mapping):
        return configs.build(Recipe, config)
    return configs.load(Recipe, config)


def _run_federated(
    experiment: Experiment, clients: Clients, observer: Observer
) -> tuple[Scoreboard, Arrays]:
    """ServerApp and ClientApp of Flower, joined by the engine that the recipe names."""
    outcome: list[tuple[Scoreboard, Arrays]] = []

    def main(grid: Grid, context: Context) -> None:
        outcome.append(run_federation(grid, experiment, clients.node.initial_arrays(), observer))

    make_engine(experiment.recipe.engine.name).run(main, clients)
    return outcome[0]
