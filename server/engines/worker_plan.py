"""How many worker processes there are, and what each is given, on Ray and on Flower's runtime."""

import logging
from dataclasses import dataclass

from fedkd.engine import EngineConfig
from fedkd.errors import ConfigError
from fedkd.experiment import Experiment

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What workers are given.

    Attributes:
        num_workers: Processes.
        num_threads: CPU threads of torch in each.
        num_cpus: Cores that each reserves with Ray.
        num_gpus: GPUs, or the part of one, that each reserves with Ray.
    """

    num_workers: int
    num_threads: int
    num_cpus: float
    num_gpus: float


def plan_for(experiment: Experiment, cores: float, gpus: float, *, ours: bool = True) -> Plan:
    """The plan of an experiment's recipe; see :func:`make_plan`."""
    recipe, on_gpu = experiment.recipe, experiment.device.type == "cuda"
    cohort = max(1, round(experiment.num_clients * recipe.strategy.fraction_train))
    return make_plan(recipe.engine, cores, gpus, cohort, on_gpu=on_gpu, ours=ours)


def make_plan(
    engine: EngineConfig, cores: float, gpus: float, cohort: int, *, on_gpu: bool, ours: bool
) -> Plan:
    """How many workers, and what each gets.

    Args:
        engine: What the recipe asks for.
        cores: That Ray has.
        gpus: That Ray has.
        cohort: Clients of a round; more workers are started only if they are asked for.
        on_gpu: The clients train on GPUs.
        ours: Ray was started for this run: then workers may share cores.

    Raises:
        ConfigError: Ray has not enough for what is asked.
    """
    share = engine.gpus_per_worker
    if on_gpu:
        if not gpus:
            raise ConfigError(
                f"engine.device is {engine.device!r} and this process has a GPU, but Ray has none; "
                "set engine.device = 'cpu', or engine.address to a cluster with GPUs"
            )
        if share == 0:
            raise ConfigError(
                "engine.gpus_per_worker is 0, but clients train on a GPU; leave it out, give each "
                "worker a part (0.25 puts four on a GPU), or set engine.device = 'cpu'"
            )
    elif share:
        raise ConfigError(
            f"engine.gpus_per_worker is {share:g}, but clients train on the CPU "
            f"(engine.device is {engine.device!r}); leave it out, or train on a GPU"
        )
    if share and share > 1 and share != int(share):
        raise ConfigError(
            f"engine.gpus_per_worker is {share:g}; it must be a part of one GPU, at most 1, or a "
            "whole number of GPUs"
        )
    room = max(1, int(cores // (engine.num_threads or 1)))
    if on_gpu:
        room = _fitting(gpus, share) if share else int(gpus)
    num_workers = engine.num_workers or max(1, min(room, cohort))
    if share and on_gpu and num_workers > _fitting(gpus, share):
        raise ConfigError(
            f"{num_workers} workers with engine.gpus_per_worker = {share:g} need more than the "
            f"{gpus:g} GPUs that Ray has, where {_fitting(gpus, share)} fit; lower "
            "engine.num_workers or engine.gpus_per_worker"
        )
    if on_gpu and not share:
        per_gpu = -(-num_workers // int(gpus))
        share = int(10_000 / per_gpu) / 10_000  # Ray counts in ten-thousandths
    num_threads = engine.num_threads or max(1, int(cores // num_workers))
    if num_workers * num_threads > cores:
        if not ours:
            raise ConfigError(
                f"{num_workers} workers of {num_threads} CPU threads need "
                f"{num_workers * num_threads} CPUs, but Ray has {cores:g}; lower "
                "engine.num_workers or engine.num_threads, or add machines to the cluster"
            )
        logger.warning(
            "%d workers with %d CPU threads each share %g cores, which makes them slower; lower "
            "engine.num_workers",
            num_workers,
            num_threads,
            cores,
        )
    num_cpus = min(float(num_threads), int(10_000 * cores / num_workers) / 10_000)
    return Plan(num_workers, num_threads, num_cpus, float(share or 0))


def _fitting(gpus: float, share: float) -> int:
    """Workers that fit on so many GPUs, none of them on parts of two."""
    return int(gpus // share) if share >= 1 else int(gpus) * int(1 / share + 1e-9)
