"""The command ``fedkd evaluate``: a run's student on any split, or on another data set."""

import argparse
import json
import logging
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkd import files
from fedkd.data.images import Integers, LabelledImages
from fedkd.data.loading import Loader
from fedkd.errors import ConfigError
from fedkd.experiment import Experiment, open_splits
from fedkd.models import states
from fedkd.partitions.manifest import data_sha256
from fedkd.recipe import Recipe
from server import terminal
from server.commands.probe import probed_recipe
from server.evaluation import predict_images, score_images
from server.external_images import in_classes_of, overlap
from server.opened_run import OpenedRun, open_run
from server.progress import Bar
from server.run_tables import predictions_table
from server.tables import print_evaluations

EVALUATIONS = "evaluations"
"""Folder of evaluations in a run directory."""

logger = logging.getLogger(__name__)


def evaluate(options: argparse.Namespace) -> None:
    """``fedkd evaluate``: a table, and predictions and scores as files."""
    terminal.log_to_stderr()
    run = open_run(Path(options.run))
    split = options.split or ("test" if options.data else "val")
    if options.overrides and not options.data:
        raise ConfigError(
            f"{options.overrides[0]} is given, but the run's own images are those of its "
            "config.toml; key=value changes what --data names"
        )
    _require_one_student(run)
    other = _other_recipe(options, run.recipe)
    experiment = run.experiment()
    # An absolute path stays itself within the run directory.
    student = run.student(experiment, str(run.student_file(options.student).absolute()))
    images, notes = _images(experiment, other, split)
    if split == "test" and options.student != "best":
        notes.append(
            "the test split is looked at with another student than the one chosen on val; whoever "
            "chooses by it reports too much: choose by --split val"
        )
    for note in notes:
        logger.warning(note)
    sha = states.sha256(student.state_dict())
    inputs: dict[str, Any] = {
        "run": run.recipe.name,
        "config_hash": run.recipe.hash(),
        "student": _label(options.student, sha),
        "student_sha256": sha,
        "split": split,
        "data": (other or run.recipe).data_set(),
        "data_sha256": data_sha256(images),
        "scored_by": "neighbours" if experiment.scored_by_neighbours else "classifier",
    }
    folder = _make_folder(options, inputs)
    threads = run.recipe.engine.num_threads
    with ExitStack() as stack:
        if threads:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
        tell = stack.enter_context(Bar(terminal.stderr()))
        loader = _Shown(images, np.arange(len(images)), experiment.device, experiment.dtype)
        loader.tell = tell
        probabilities = predict_images(experiment, student, loader)
    scores = score_images(experiment, images, probabilities)
    name = f"{Path(options.data).stem} {split}" if options.data else split
    title = f"{run.recipe.name}: {_title(run, options.student)}"
    print_evaluations(terminal.stdout(), experiment, title, {name: scores})
    with files.replacing(folder / "predictions.csv") as part:
        predictions_table(images, probabilities).to_csv(part, index=False)
    with files.replacing(folder / "evaluation.json") as part:
        text = json.dumps(
            {**inputs, "notes": notes, "scores": scores.to_dict()}, indent=2, ensure_ascii=False
        )
        part.write_text(text + "\n", encoding="utf-8")
    print(f"{folder / 'evaluation.json'}\n{folder / 'predictions.csv'}")


class _Shown(Loader):
    """A loader that shows how far it has been read."""

    tell: Bar

    def batches(self, plan: Sequence[Integers]) -> Generator[tuple[Tensor, Tensor], None, None]:
        done = 0
        with closing(super().batches(plan)) as loaded:
            for rows, batch in zip(plan, loaded, strict=True):
                yield batch
                done += len(rows)
                self.tell("predicting", done, len(self))


def _require_one_student(run: OpenedRun) -> None:
    exchange, objective = run.recipe.strategy.exchange, run.recipe.objective.name
    if exchange == "all" or (exchange == "without_projector" and objective != "moon"):
        return
    raise ConfigError(
        f"{run.path} has strategy.exchange = {exchange!r}: each hospital predicts with tensors of "
        "its own, which no file of the run holds; its scores are in summary.json, its predictions "
        "in predictions_test.csv"
    )


def _other_recipe(options: argparse.Namespace, recipe: Recipe) -> Recipe | None:
    """Of ``--data``; by name, the other data set has the run's size of images."""
    if not options.data:
        return None
    is_name = not (options.data.endswith(".toml") or Path(options.data).is_file())
    overrides = list(options.overrides)
    sized = any(text.partition("=")[0] in ("size", "data.size") for text in overrides)
    if is_name and not sized and hasattr(recipe.data, "size"):
        overrides.append(f"data.size={recipe.data.size}")
    return probed_recipe("default", options.data, overrides)


def _images(
    experiment: Experiment, other: Recipe | None, split: str
) -> tuple[LabelledImages, list[str]]:
    train = experiment.splits.train
    if other is None:
        own: LabelledImages = getattr(experiment.splits, split)
        return own, []
    what = f"the {split} split of {other.data.name}"
    images, notes = in_classes_of(train, getattr(open_splits(other), split), what)
    return images, notes + overlap(train, images, what)


def _label(student: str, sha: str) -> str:
    if student in ("best", "last") or student.startswith("round:"):
        return student.replace(":", "-")
    return f"{Path(student).stem}-{sha[:8]}"


def _title(run: OpenedRun, student: str) -> str:
    if student == "best":
        return f"student of round {run.summary.get('best_round', '?')}, best on val"
    return "last student" if student == "last" else f"student {student}"


def _make_folder(options: argparse.Namespace, inputs: dict[str, Any]) -> Path:
    """The folder of the files; one that holds another evaluation is refused (ConfigError)."""
    name = f"{inputs['student']}-{inputs['split']}"
    if options.data:
        name += f"-{Path(options.data).stem}"
    folder = Path(options.output or Path(options.run) / EVALUATIONS / name)
    there = folder / "evaluation.json"
    if there.is_file():
        try:
            found = json.loads(there.read_text(encoding="utf-8"))
            differing = [key for key, value in inputs.items() if found[key] != value]
        except (ValueError, KeyError, TypeError):
            differing = ["content"]
        if differing:
            raise ConfigError(
                f"{there} is there and of another evaluation ({', '.join(differing)} differs), and "
                "nothing is written over; choose another --output"
            )
    return terminal.make_folder(folder)
