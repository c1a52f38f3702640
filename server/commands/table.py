"""The commands of ``fedkd``, one function each."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from clients.factory import OBJECTIVES
from fedkd import config, files
from fedkd.data.augment import AUGMENTATIONS
from fedkd.data.catalog import DATASETS
from fedkd.data.site_writing import write_sites
from fedkd.engine import ENGINES
from fedkd.experiment import open_data
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
from server.commands.run import centralized, resume, run
from server.commands.shortcut import shortcut
from server.commands.spectrum import spectrum
from server.commands.teachers import teachers
from server.output_folder import output_folder
from server.pictures.partition import plot_partition
from server.run_tables import partition_table
from server.tables import print_catalog, print_divergence, print_partition
from strategies.factory import STRATEGIES


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
    question = {"manifest": text, "name": recipe.name}
    place = Path(recipe.output) / recipe.name
    with output_folder(options.output, place, "partition", question) as folder:
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
