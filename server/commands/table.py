"""The commands of ``fedkd``, one function each."""

import argparse
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clients.factory import OBJECTIVES
from fedkd import accounting, config, files
from fedkd.data.augment import AUGMENTATIONS
from fedkd.data.catalog import DATASETS
from fedkd.data.site_writing import write_sites
from fedkd.engine import ENGINES
from fedkd.errors import ClientFailure, ConfigError
from fedkd.experiment import Experiment, open_data, open_experiment
from fedkd.fourier.generators.factory import GENERATORS
from fedkd.losses.factory import LOSSES
from fedkd.models.factory import STUDENTS
from fedkd.partitions import manifest
from fedkd.partitions.factory import PARTITIONS
from fedkd.recipe import Recipe
from fedkd.schedules import SCHEDULES
from fedkd.teachers.zoo import TEACHERS
from server import terminal
from server.commands.compare import compare
from server.commands.data import data
from server.commands.evaluate import evaluate
from server.commands.export import export
from server.commands.predict import predict
from server.commands.pretrain import pretrain
from server.commands.probe import probe
from server.commands.prompts import prompts
from server.commands.report import report
from server.commands.shortcut import shortcut
from server.commands.spectrum import spectrum
from server.commands.teachers import teachers
from server.failures import broken
from server.interrupted_run import InterruptedRun, open_interrupted, unfinished_run
from server.made_teacher import TEACHER, use_of
from server.output_folder import output_folder
from server.pictures.partition import plot_partition
from server.progress import TerminalProgress
from server.reporting.report import write_report
from server.run_tables import partition_table
from server.simulation import run as run_experiment
from server.tables import print_catalog, print_divergence, print_partition, print_results
from server.whereabouts import Whereabouts
from strategies.factory import STRATEGIES

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


def partition(options: argparse.Namespace) -> None:
    """``fedkd partition``: classes and hospitals as tables, a CSV, a PNG and a manifest.

    With ``--sites`` also what each hospital would have on its own disk, and the server on its.
    """
    terminal.log_to_stderr()
    recipe = config.load(Recipe, options.config, options.overrides)
    splits, divided = open_data(recipe)
    table = partition_table(splits.train, divided)
    console = terminal.stdout()
    print_partition(console, table)
    counts = divided.counts(splits.train.labels, splits.train.num_classes)
    print_divergence(console, counts, divided.client_names, splits.train.class_names)
    settings = recipe.partition.model_dump(mode="json")
    text = manifest.to_json(
        manifest.describe(divided, splits.train, settings, recipe.seed, recipe.data_set())
    )
    place = Path(options.output or Path(recipe.output) / recipe.name)
    with output_folder(place, "partition", {"manifest": text, "name": recipe.name}) as folder:
        picture, csv = folder / "partition.png", folder / "partition.csv"
        described = folder / "partition.json"
        title = f"{recipe.name}: training images per hospital and class"
        plot_partition(counts, divided.client_names, splits.train.class_names, picture, title)
        with files.replacing(csv) as part:
            table.to_csv(part, index=False)
        with files.replacing(described) as part:
            part.write_text(text, encoding="utf-8")
    print(f"partition hash {divided.hash}\n{picture}\n{csv}\n{described}")
    if options.sites:
        for path in write_sites(
            Path(options.sites), splits, divided, recipe.seed, recipe.data_set()
        ):
            print(path)


def show_config(options: argparse.Namespace) -> None:
    """``fedkd config``: the resolved recipe with the meaning of every key."""
    print(config.explain(config.load(Recipe, options.config, options.overrides)), end="")


def catalog(options: argparse.Namespace) -> None:
    """``fedkd list``: what a recipe can name, with one line each."""
    parts: dict[str, Mapping[str, str]] = {
        "data sets (data.name)": {name: entry.description for name, entry in DATASETS.items()},
        "partitions (partition.name)": PARTITIONS,
        "augmentations (augmentation.name)": AUGMENTATIONS,
        "students (student.name)": {name: entry.description for name, entry in STUDENTS.items()},
        "teachers (teacher.name)": TEACHERS,
        "objectives (objective.name)": OBJECTIVES,
        "Fourier prompts (prompts.generator)": {str(n): text for n, text in GENERATORS.items()},
        "schedules (schedule.name)": SCHEDULES,
        "losses (objective.loss)": {str(name): entry.description for name, entry in LOSSES.items()},
        "strategies (strategy.name)": {n: entry.description for n, entry in STRATEGIES.items()},
        "engines (engine.name)": {str(name): text for name, text in ENGINES.items()},
    }
    print_catalog(terminal.stdout(), parts)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "run": run,
    "centralized": centralized,
    "resume": resume,
    "compare": compare,
    "partition": partition,
    "config": show_config,
    "pretrain": pretrain,
    "shortcut": shortcut,
    "probe": probe,
    "spectrum": spectrum,
    "evaluate": evaluate,
    "prompts": prompts,
    "report": report,
    "predict": predict,
    "export": export,
    "data": data,
    "teachers": teachers,
    "list": catalog,
}


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
