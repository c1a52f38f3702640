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
from fedkd import config as configs
from fedkd.data.images import LabelledImages
from fedkd.experiment import Experiment, InitialStudent, open_experiment
from fedkd.models.student import Student
from fedkd.recipe import Recipe
from fedkd.teachers.opening import GivenTeacher
from server.centralized import run_centralized
from server.checkpoint import Checkpoints
from server.engines.clients import Clients
from server.engines.factory import make_engine
from server.evaluation import Arrays
from server.federation import run_federation
from server.interrupted_run import open_interrupted
from server.kept_students import STUDENTS
from server.opened_run import PROMPTS, OpenedRun
from server.results import Mode, RunDirectory, summarise
from server.round_replies import RoundReplies
from server.scoreboard import Observer, Scoreboard
from server.signals import gently, safe_place
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


def resume(
    path: Path | str,
    sites: Sequence[LabelledImages] | None = None,
    val: LabelledImages | None = None,
    test: LabelledImages | None = None,
    teacher: GivenTeacher | None = None,
    initial_student: InitialStudent | None = None,
    *,
    overrides: Sequence[str] = (),
    observers: Sequence[Observer] = (),
) -> Simulation:
    """Go on with an interrupted run, in its directory: with the bits that it would have had.

    Args:
        path: The run directory.
        sites: What :func:`simulate` was given, here and in the next four.
        val: Likewise.
        test: Likewise.
        teacher: Likewise.
        initial_student: Likewise.
        overrides: ``key=value`` of what changes no number: where clients run, ``checkpoint``,
            ``tracking``.
        observers: Told how it goes, beside the trackers that ``tracking`` names.

    Raises:
        ConfigError: It is no such run, has finished, is still running, or has no whole checkpoint.
        DataError: Its images or their division are not those of the run any more.
        FedkdError: What :func:`simulate` raises.
    """
    interrupted = open_interrupted(Path(path), overrides)
    experiment = interrupted.experiment(
        sites=sites, val=val, test=test, teacher=teacher, initial_student=initial_student
    )
    return run(experiment, observers=observers, interrupted=interrupted)


def run(
    experiment: Experiment,
    *,
    centralized: bool = False,
    output: Path | str | None = None,
    observers: Sequence[Observer] = (),
    interrupted: OpenedRun | None = None,
) -> Simulation:
    """Run an experiment that is open already; see :func:`simulate`.

    ``interrupted`` is a run that goes on as this experiment, in its own mode and directory.
    """
    recipe = experiment.recipe
    threads = recipe.engine.num_threads
    if interrupted:
        centralized = interrupted.summary["mode"] == "centralized"
    mode: Mode = "centralized" if centralized else "federated"
    # Before the run directory is made: a package may be missing.
    everybody = [*make_trackers(recipe.tracking), *observers]
    with ExitStack() as stack:
        if threads:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
        results, checkpoints = None, None
        if interrupted or output is not None:
            if interrupted:
                results = RunDirectory.reopen(interrupted, experiment)
            else:
                results = RunDirectory.create(experiment, mode, Path(str(output)))
            # Before the directory notes how the run ends: it may be another process's.
            if interrupted or recipe.checkpoint.every:
                checkpoints = stack.enter_context(
                    Checkpoints(
                        results.path,
                        recipe.checkpoint,
                        {"config_hash": recipe.hash(), "mode": mode},
                        results.notes,
                        resumes=interrupted is not None,
                    )
                )
            stack.enter_context(results)
        observer = stack.enter_context(Everybody(experiment, mode, results, everybody))
        folders = Folders()
        if results:
            states = checkpoints.states if checkpoints else None
            folders = Folders(results.path / PROMPTS, results.path / STUDENTS, states)
        replies = None
        if checkpoints and recipe.checkpoint.every and not centralized:
            kept = RoundReplies(checkpoints.replies, recipe.checkpoint, checkpoints.states)
            replies = stack.enter_context(kept)

        def progress(*step: Any) -> None:
            observer.client_progress(*step)
            if replies:
                replies.tick()
            safe_place()

        clients = Clients(experiment, progress, folders, replies.replied if replies else None)
        if centralized:
            node = clients.node
            with gently():
                board, arrays = run_centralized(experiment, node, observer, checkpoints)
        else:
            board, arrays = _run_federated(experiment, clients, observer, checkpoints, replies)
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
    experiment: Experiment,
    clients: Clients,
    observer: Observer,
    checkpoints: Checkpoints | None,
    replies: RoundReplies | None,
) -> tuple[Scoreboard, Arrays]:
    """ServerApp and ClientApp of Flower, joined by the engine that the recipe names."""
    outcome: list[tuple[Scoreboard, Arrays]] = []

    def main(grid: Grid, context: Context) -> None:
        initial = clients.node.initial_arrays()
        with gently():
            outcome.append(
                run_federation(
                    grid,
                    experiment,
                    initial,
                    observer,
                    checkpoints=checkpoints,
                    replies=replies,
                )
            )

    make_engine(experiment.recipe.engine.name).run(main, clients)
    return outcome[0]
