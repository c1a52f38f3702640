"""Objectives by name."""

import torch

from clients.ekd import EKD
from clients.fopro import FoPro
from clients.objective import Objective
from clients.supervised import Supervised
from fedkd.experiment import Experiment

OBJECTIVES: dict[str, str] = {
    "supervised": "cross-entropy or balanced softmax alone, no teacher",
    "ekd": "Effective Knowledge Distillation from the plain teacher",
    "fopro": "EKD from the Fourier-prompted teacher: FPG, and AKD with explore.gamma > 0",
}


def make_objective(experiment: Experiment, partition_id: int) -> Objective:
    """The objective that the recipe names, for one client."""
    recipe = experiment.recipe
    counts = torch.from_numpy(experiment.loader(partition_id).class_counts())
    class_counts = counts.to(experiment.device, experiment.dtype)
    if recipe.objective.name == "supervised":
        return Supervised(recipe.objective.loss, class_counts)
    assert experiment.teacher is not None, "an objective with a teacher was opened without one"
    if recipe.objective.name == "ekd":
        return EKD(
            recipe.objective.loss, class_counts, experiment.teacher, recipe.objective.lambda_f
        )
    return FoPro(experiment, partition_id, experiment.teacher, class_counts)
