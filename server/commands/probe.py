"""The command ``fedkd probe``: is a teacher worth distilling from for these images?"""

import argparse
import json
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from fedkd import config, files
from fedkd.data.images import Splits
from fedkd.device import choose_device
from fedkd.experiment import open_splits
from fedkd.fetching import hash_file
from fedkd.partitions.manifest import data_sha256
from fedkd.probing import worth
from fedkd.probing.controls import Reader
from fedkd.probing.projection import project
from fedkd.recipe import Recipe
from fedkd.teachers import zoo
from fedkd.teachers.config import OneTeacherConfig
from fedkd.teachers.loading import open_teacher, weights_path
from fedkd.teachers.stored import read_card
from server import terminal
from server.commands.data import require_name
from server.output_folder import output_folder
from server.pictures.feature_space import plot_feature_space
from server.progress import Bar


def probe(options: argparse.Namespace) -> None:
    """``fedkd probe``: tables of kNN and linear probe, a verdict, and the feature space."""
    terminal.log_to_stderr()
    recipe = probed_recipe(options.teacher, options.dataset, options.overrides)
    device = choose_device(recipe.engine.device, "engine.device")
    question = {"recipe": recipe.hash(), "teacher": recipe.teacher.checkpoint, "test": options.test}
    with output_folder(options.output, _place(recipe), "probe", question) as folder:
        # The file of weights first: a missing one is found in no time, images take theirs.
        teacher = open_teacher(recipe.teacher).to(device).to(memory_format=torch.channels_last)
        card = _card(recipe.teacher)
        splits = open_splits(recipe)
        with ExitStack() as stack:
            if recipe.engine.num_threads:
                stack.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(recipe.engine.num_threads)
            tell = stack.enter_context(Bar(terminal.stderr()))
            reader = Reader(device, recipe.evaluation.batch_size, tell)
            features = worth.read_features(
                recipe.teacher, teacher, splits, reader, recipe.seed, options.test
            )
            rows = worth.judge(splits, features, reader, recipe.seed)
            tell("two-dimensional picture", 0, 1)
            shown, places = project(features[worth.TEACHER]["val"], recipe.seed)
        title = f"{_label(recipe.teacher)} on {recipe.data.name}"
        _print(terminal.stdout(), rows, title)
        verdict = worth.verdict(rows)
        print(verdict)
        val = splits.val.subset(shown)
        plot_feature_space(
            places,
            val.labels,
            val.class_names,
            val.sites,
            val.site_names,
            folder / "probe.png",
            f"{title}: features of {len(val):,} val images in two dimensions",
        )
        with files.replacing(folder / "probe.csv") as part:
            pd.DataFrame(worth.table(rows)).to_csv(part, index=False)
        with files.replacing(folder / "probe.json") as part:
            text = json.dumps(
                _report(recipe, splits, rows, verdict, card), indent=2, ensure_ascii=False
            )
            part.write_text(text + "\n", encoding="utf-8")
        print("\n".join(str(folder / f"probe.{ending}") for ending in ("png", "csv", "json")))


def probed_recipe(teacher: str, dataset: str, overrides: Sequence[str]) -> Recipe:
    """The recipe of a probe, from the command's arguments.

    Args:
        teacher: A teacher's name, or the path of a file that `fedkd pretrain` wrote.
        dataset: A data set's name, or a recipe, whose section ``teacher`` holds if it is about the
            same teacher.
        overrides: ``key=value`` of a recipe; with a data set's name, a key without a dot is one of
            the data set.

    Raises:
        ConfigError: No such teacher, data set, file or key.
    """
    if not zoo.known(teacher) and (teacher.endswith(".safetensors") or Path(teacher).is_file()):
        own = ["teacher.name=pretrained", f"teacher.checkpoint={json.dumps(teacher)}"]
    else:
        own = [f"teacher.name={json.dumps(teacher)}"]
    recipe = None
    if dataset.endswith(".toml") or Path(dataset).is_file():
        recipe, keys = dataset, list(overrides)
        others = [text for text in keys if not text.startswith("teacher.")]
        written = config.load(Recipe, recipe, others)
        if teacher == written.teacher.name:
            return config.load(Recipe, recipe, [*own, *keys])
    else:
        require_name(dataset)
        keys = [text if "." in text.partition("=")[0] else f"data.{text}" for text in overrides]
        others = [f"data.name={dataset}", *(k for k in keys if not k.startswith("teacher."))]
        written = config.load(Recipe, None, others)
    about = [text for text in keys if text.startswith("teacher.")]
    other = config.load(Recipe, None, [*own, *about]).teacher
    return written.model_copy(update={"teacher": other})


def _label(teacher: OneTeacherConfig) -> str:
    return Path(teacher.checkpoint).stem if teacher.name == zoo.PRETRAINED else teacher.name


def _place(recipe: Recipe) -> Path:
    name = re.sub(r"[^\w.-]+", "_", f"probe-{_label(recipe.teacher)}-{recipe.data.name}")
    return Path(recipe.output) / name


def _print(console: Console, rows: Sequence[worth.Row], title: str) -> None:
    for split in dict.fromkeys(row.split for row in rows):
        ours = [row for row in rows if row.split == split]
        shown = Table(title=f"{title}: {split} ({ours[0].scores.num_images} images)")
        for column in ("method", "features"):
            shown.add_column(column)
        for column in ("balanced acc.", "MCC", "macro-AUROC", "tail recall",
                       "teacher minus this, points"):  # fmt: skip
            shown.add_column(column, justify="right")
        for before, row in zip([None, *ours], ours, strict=False):
            if before and before.method != row.method:
                shown.add_section()
            scores, minus = row.scores, row.minus
            values = (scores.balanced_accuracy, scores.mcc, scores.macro_auroc,
                      scores.recall["tail"])  # fmt: skip
            shown.add_row(
                {"knn": "kNN", "linear": "linear probe"}[row.method],
                row.features,
                *("-" if value != value else f"{value:.3f}" for value in values),
                f"{100 * minus.value:+.1f} [{100 * minus.low:+.1f}, {100 * minus.high:+.1f}]"
                if minus
                else "",
            )
        console.print(shown)


def _report(
    recipe: Recipe, splits: Splits, rows: Sequence[worth.Row], verdict: str, card: Any
) -> dict[str, Any]:
    images = {name: getattr(splits, name) for name in ("train", "val", "test")}
    return {
        "verdict": verdict,
        "table": worth.table(rows),
        "differences": "balanced accuracy of the teacher minus that of the control, 95 % interval "
        "of a bootstrap over lesions or patients, single images where none is known",
        "scores": [
            {
                "features": row.features,
                "method": row.method,
                "split": row.split,
                **row.scores.to_dict(),
            }
            for row in rows
        ],
        "teacher": {
            "card": card,
            "sha256": hash_file(weights_path(recipe.teacher)),
            "config": recipe.teacher.model_dump(mode="json"),
        },
        "data": {
            **recipe.data_set(),
            "num_images": {name: len(some) for name, some in images.items()},
            "images_sha256": {name: data_sha256(some) for name, some in images.items()},
        },
        "seed": recipe.seed,
        "versions": {name: version(name) for name in ("fedkd", "torch", "scikit-learn")},
        "threads": torch.get_num_threads(),
    }


def _card(teacher: OneTeacherConfig) -> Any:
    """What is known of the teacher; of one that `fedkd pretrain` made, the card beside the file."""
    if teacher.name != zoo.PRETRAINED:
        return asdict(zoo.card_of(teacher.name))
    beside = weights_path(teacher).with_suffix(".json")
    return read_card(beside) if beside.is_file() else None
