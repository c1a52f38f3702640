"""The commands ``fedkd run``, ``centralized`` and ``resume``: a run, from its beginning or on."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from fedkd import accounting, config
from fedkd.errors import ClientFailure, ConfigError
from fedkd.experiment import Experiment, open_experiment
from fedkd.recipe import Recipe
from server import terminal
from server.failures import broken
from server.interrupted_run import InterruptedRun, open_interrupted, unfinished_run
from server.made_teacher import TEACHER, use_of
from server.progress import TerminalProgress
from server.reporting.report import write_report
from server.run_tables import partition_table
from server.simulation import run as run_experiment
from server.tables import print_partition, print_results
from server.whereabouts import Whereabouts

logger = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> None:
    """``fedkd run``: a federation."""
    _train(options, centralized=False)


def centralized(options: argparse.Namespace) -> None:
    """``fedkd centralized``: the same method on the pooled images."""
    _train(options, centralized=True)


def resume(options: argparse.Namespace) -> None:
    """``fedkd resume``: the rest of an interrupted run."""
    terminal.log_to_stderr()
    _go_on(open_interrupted(Path(options.run), options.overrides))


def _train(options: argparse.Namespace, centralized: bool) -> None:
    terminal.log_to_stderr()
    if Path(options.config).is_dir():
        raise ConfigError(
            f"{options.config} is a folder, not a recipe; if it is the directory of an interrupted "
            f"run, go on with it: fedkd resume {options.config}"
        )
    recipe = config.load(Recipe, options.config, options.overrides)
    if centralized:
        recipe = recipe.model_copy(update={"num_clients": 1})
    if options.resume:
        mode, output = "centralized" if centralized else "federated", Path(recipe.output)
        if path := unfinished_run(recipe, mode, output):
            _go_on(open_interrupted(path, recipe=recipe))
            return
        logger.info("no unfinished run of this recipe in %s; a new one begins", output)
    experiment = open_experiment(recipe)
    _run(experiment, centralized=centralized, output=recipe.output)


def _go_on(interrupted: InterruptedRun) -> None:
    logger.info("going on with %s", interrupted.path)
    _run(interrupted.experiment(), interrupted=interrupted)


def _run(experiment: Experiment, **how: Any) -> None:
    print_partition(
        terminal.stdout(), partition_table(experiment.splits.train, experiment.partition)
    )
    with TerminalProgress(terminal.stderr(), experiment) as progress, Whereabouts() as where:
        result = run_experiment(experiment, observers=[progress, where], **how)
    print_results(terminal.stdout(), result.board)
    if "privacy" in result.summary:
        print(accounting.sentence(result.summary["privacy"]))
    if result.path:
        print(f"report {write_report(result.path)}")
    print(f"student sha256 {result.summary['student_sha256']}\nrun directory {result.path}")
    if experiment.scored_by_neighbours and result.path:
        print(f"distil from the teacher: fedkd run CONFIG {use_of(result.path / TEACHER)}")
    if kept := result.board.kept_rounds:
        sys.stdout.flush()
        raise ClientFailure(broken(kept))
