"""Objectives by name."""

import torch

from clients.ekd import EKD
from clients.fedprox import FedProx
from clients.fopro import FoPro
from clients.moco import MoCo
from clients.moon import Moon
from clients.objective import Objective
from clients.supervised import Supervised
from fedkd.experiment import Experiment
from fedkd.losses.effective_number import effective_number_weights, is_reweighted
from fedkd.losses.factory import make_loss
from fedkd.recipe import ObjectiveConfig

OBJECTIVES: dict[str, str] = {
    "supervised": "the supervised loss alone, no teacher",
    "fedprox": "supervised, held near the received student (Li et al. 2020)",
    "moon": "supervised, contrasted with the client's previous student (Li et al. 2021)",
    "ekd": "Effective Knowledge Distillation from the plain teacher",
    "moco": "momentum contrast without labels: hospitals make a teacher together",
    "fopro": "EKD from the Fourier-prompted teacher: FPG, and AKD with explore.gamma > 0",
}


def make_objective(experiment: Experiment, partition_id: int, round_number: int) -> Objective:
    """The objective that the recipe names, for one client in one round (from 1)."""
    recipe = experiment.recipe
    config = recipe.objective
    if config.name == "moco":
        return MoCo(recipe.moco, recipe.seed, partition_id)
    counts = torch.from_numpy(experiment.loader(partition_id).class_counts()).to(
        experiment.device, experiment.dtype
    )
    loss = make_loss(config.loss, recipe.losses, counts, round_number, recipe.num_rounds)
    if config.name == "supervised":
        return Supervised(loss)
    if config.name == "fedprox":
        return FedProx(loss, recipe.fedprox.mu)
    if config.name == "moon":
        return Moon(loss, recipe.moon.mu, recipe.moon.temperature, recipe.moon.frozen_mode)
    lambda_f = distillation_weight(config, round_number, recipe.num_rounds)
    reweighted = config.balanced_distillation and is_reweighted(round_number, recipe.num_rounds)
    weights = (
        effective_number_weights(counts, recipe.losses.beta).to(counts.dtype)
        if reweighted
        else None
    )
    if config.name == "ekd":
        kept = experiment.kept_features[partition_id]
        return EKD(loss, experiment.teacher_of(partition_id), lambda_f, weights, kept)
    return FoPro(experiment, partition_id, loss, lambda_f, weights)


def distillation_weight(config: ObjectiveConfig, round_number: int, num_rounds: int) -> float:
    """lambda_f in a round (from 1): full at first, then falling linearly if the config says so.

    With s = ``ramp_down_after`` and r = ``round_number`` - 1 it is lambda_f (1 - (r - s)/(T - s))
    from r = s on: never 0 within the T rounds.

    Source: the rule that the Fed-MAS code calls linear ramp-down.
    """
    start = config.ramp_down_after
    if start is None or round_number - 1 <= start:
        return config.lambda_f
    return config.lambda_f * (1 - (round_number - 1 - start) / (num_rounds - start))
