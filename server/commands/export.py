"""The command ``fedkd export``: a run's student as one file, compared with the original, a card."""

import argparse
import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedkd import files
from fedkd.data.dead_leaves import dead_leaves
from fedkd.data.images import LabelledImages
from fedkd.data.loading import Loader
from fedkd.errors import ConfigError, FedkdError
from fedkd.experiment import open_splits
from fedkd.prediction import predict
from fedkd.recipe import Recipe
from server import terminal
from server.exporting import FORMATS, INPUT, OUTPUTS, TOLERANCE, write_checked
from server.opened_run import OpenedRun, open_run
from server.output_folder import new_file
from server.whole_student import WholeStudent, open_whole_student

logger = logging.getLogger(__name__)

INTENDED_USE = "research use only; this is no medical device"
_NUM_COMPARED = 32


def export(options: argparse.Namespace) -> None:
    """``fedkd export``: writes and checks the file, and its model card."""
    terminal.log_to_stderr()
    run = open_run(Path(options.run))
    student = open_whole_student(run, options.student)
    form: str = options.format
    default = run.path / "export" / f"{student.path.stem}{FORMATS[form].suffix}"
    path = Path(options.output) if options.output else default
    card_path = path.with_name(f"{path.name}.json")
    if path.is_dir() or path.resolve() == student.path.resolve():
        what = "a folder" if path.is_dir() else "the student itself"
        raise ConfigError(f"--output {path} is {what}; name another file")
    if options.output:
        new_file(path)
        new_file(card_path)
    images, which = _images_to_compare(run.recipe, student.size)
    dtype = next(student.network.parameters()).dtype
    data = LabelledImages(images, np.zeros(len(images), np.int64), student.class_names)
    rows = np.arange(len(images))
    loader = Loader(data, rows, torch.device("cpu"), dtype)
    expected = predict(student.network, loader, len(images))
    card = model_card(run, student, form)
    logger.info("writing %s as %s ...", student.path, form)
    terminal.make_folder(path.parent)
    try:
        with files.replacing(path) as part:
            difference = write_checked(
                student.network, part, form, file_metadata(card), images, expected
            )
        card["file"] = path.name
        card["compared_with_the_original"] = {
            "images": f"{len(images)} {which}",
            "largest_difference_of_a_probability": difference,
            "allowed": TOLERANCE,
        }
        with files.replacing(card_path) as part:
            part.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error}; choose another --output") from None
    print(
        f"agrees with the original on {len(images)} {which}: class probabilities differ by "
        f"{difference:.1e} at most (allowed: {TOLERANCE:g})"
    )
    print(f"{card_path}\n{path}")


def model_card(run: OpenedRun, student: WholeStudent, form: str) -> dict[str, Any]:
    """What a user of the file must know, ready for JSON.

    Test figures are there only if this very student was tested, which is the one chosen on val.
    """
    recipe, summary, network = run.recipe, run.summary, student.network
    size, tested = student.size, student.sha256 == summary.get("best_student_sha256")
    # Not as float32 shows them.
    mean, std = (np.round(v.flatten().tolist(), 6).tolist() for v in (network.mean, network.std))
    inside = "dividing by 255" + (", then (value - mean) / std per channel" if mean else "")
    whole = form != "safetensors"
    return {
        "name": recipe.name,
        "format": form,
        "intended_use": INTENDED_USE,
        "classes": list(student.class_names),
        "architecture": recipe.student.name,
        "num_parameters": sum(value.numel() for value in network.parameters()),
        "preprocessing": {
            "in_words": "Decode the first frame, turn it upright by its EXIF orientation, convert "
            "to 8-bit RGB without applying colour profiles (16-bit grey divided by 257, "
            f"transparent parts black), resize to {size} x {size} px, bilinear with antialiasing "
            "as Pillow does it, without keeping the aspect ratio, and order as channels, rows, "
            f"columns. Inside {'the file' if whole else 'fedkd, not in these weights'}: {inside}.",
            "size": size,
            "channels": "RGB",
            "divide_by": 255,
            "mean": mean,
            "std": std,
        },
        "input": {INPUT: f"float32 (batch, 3, {size}, {size}), 0 to 255"} if whole else None,
        "outputs": {name: f"float32 (batch, {len(student.class_names)})" for name in OUTPUTS}
        if whole
        else None,
        "student": student.path.name,
        "student_sha256": student.sha256,
        "round": summary.get("best_round") if tested else None,
        "training": {
            "data": recipe.data_set(),
            "train_counts": summary["train_counts"],
            "objective": recipe.objective.name,
            "loss": recipe.objective.loss,
            "strategy": recipe.strategy.name,
            "mode": summary.get("mode"),
            "status": summary.get("status"),
            "seed": recipe.seed,
            "config_hash": recipe.hash(),
            "partition_hash": summary["partition_hash"],
            "versions": summary.get("versions"),
        },
        "test": summary.get("test") if tested else None,
        "test_note": "of this student, on the test split of its data set"
        if tested
        else "this student was not tested; the run's test figures are of another one",
        "fedkd_version": version("fedkd"),
    }


def file_metadata(card: dict[str, Any]) -> dict[str, str]:
    """The part of the card that goes into the file itself; what is no text is JSON."""
    chosen = {
        "name": card["name"],
        "intended_use": card["intended_use"],
        "classes": card["classes"],
        "architecture": card["architecture"],
        "size": card["preprocessing"]["size"],
        "mean": card["preprocessing"]["mean"],
        "std": card["preprocessing"]["std"],
        "preprocessing": card["preprocessing"]["in_words"],
        "student_sha256": card["student_sha256"],
        "config_hash": card["training"]["config_hash"],
        "fedkd_version": card["fedkd_version"],
    }
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in chosen.items()}


def _images_to_compare(recipe: Recipe, size: int) -> tuple[npt.NDArray[np.uint8], str]:
    """Up to 32 val images of the run, evenly spread; procedural ones where these are not here."""
    try:
        val = open_splits(recipe).val
    except FedkdError as error:
        logger.warning(
            "the run's images are not here (%s); the file is compared with the student on "
            "procedural images instead",
            str(error).splitlines()[0],
        )
        return dead_leaves(_NUM_COMPARED, size, recipe.seed), "procedural images"
    rows = np.unique(np.linspace(0, len(val) - 1, _NUM_COMPARED).round().astype(np.int64))
    return np.asarray(val.images[rows], np.uint8), "val images of the run"
