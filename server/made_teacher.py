"""The teacher that hospitals make together (objective moco), in the run directory."""

import shlex
from pathlib import Path
from typing import cast

import torch
from torch import nn

from fedkd.teachers import stored
from fedkd.teachers.card import Channels
from server.scoreboard import Scoreboard

TEACHER = "teacher.safetensors"


def use_of(path: Path) -> str:
    """The overrides with which a recipe distils from the teacher."""
    checkpoint = shlex.quote(f"teacher.checkpoint={path.resolve()}")
    return f"objective.name=ekd teacher.name=pretrained {checkpoint}"


def write_teacher(board: Scoreboard, path: Path, mode: str) -> None:
    """Write the student that was chosen on val as a teacher, and its card beside it.

    Weights are stored as float32: what was evaluated is what is stored, but for the rounding of
    students in float64.

    Args:
        board: Of a finished run.
        path: Of the weights; the card has its name with the ending ``.json``.
        mode: How the student was trained, `federated` or `centralized`.
    """
    assert board.best_val is not None, "the run is not finished"
    assert board.test is not None, "the run is not finished"
    experiment, recipe = board.experiment, board.experiment.recipe
    student = board.final_student(board.best_arrays).cpu().float()
    head = cast(nn.Sequential, student.p_free)
    # Pixels that a student takes as they are, its teacher takes as they are.
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if student.mean.numel():
        mean, std = (
            cast(Channels, tuple(round(value, 6) for value in values.flatten().tolist()))
            for values in (student.mean, student.std)
        )
    num_features = cast(nn.Linear, head[0]).in_features
    whose = f"{experiment.num_clients} clients" if mode == "federated" else "pooled images"
    images = "given images" if experiment.images_given else f"images of {recipe.data.name}"
    scores = ("balanced_accuracy", "mcc", "macro_auroc")
    card = {
        "name": recipe.name,
        "architecture": recipe.student.name,
        "num_features": num_features,
        "num_parameters": sum(p.numel() for p in student.backbone.parameters()),
        "head": "contrastive",
        "method": f"{mode} MoCo v2, {whose}",
        "data": f"{len(experiment.splits.train)} {images}, without labels",
        "mean": mean,
        "std": std,
        "num_clients": experiment.num_clients,
        "num_rounds": len(board.rounds),
        "best_round": board.best_round,
        "config_hash": recipe.hash(),
        "knn": {
            "method": "nearest neighbours on the features; the bank is the labelled val images, "
            "of which those of one lesion or patient do not predict each other; the round was "
            "chosen on val",
            "val": {name: getattr(board.best_val, name) for name in scores},
            "test": {name: getattr(board.test, name) for name in scores},
        },
        "batchnorm_statistics": "running averages of training, over random views"
        + (", averaged over the clients" if mode == "federated" else ""),
        "licence": "that of your images",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    teacher = stored.StoredTeacher(
        recipe.student.name, student.backbone, num_features, head, mean, std
    )
    metadata = {"config_hash": recipe.hash()}
    stored.write_teacher(path, teacher, metadata, card, half=False)
