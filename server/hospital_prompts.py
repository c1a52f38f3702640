"""The prompts of a run's hospitals, opened and measured, and the tables of what was measured."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedkd import seeding
from fedkd.data.images import Integers
from fedkd.data.loading import Loader
from fedkd.errors import ConfigError, DataError
from fedkd.experiment import Experiment
from fedkd.fourier.kept import load_prompts, path_of
from fedkd.fourier.portrait import (
    NUM_IMAGES,
    Portrait,
    portray,
    prompted_at,
    radial_profile,
    spectral_change,
)
from fedkd.fourier.rings import ring_frequencies
from server.opened_run import PROMPTS, OpenedRun

logger = logging.getLogger(__name__)

Split = Literal["train", "val"]
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Example:
    """One image under one prompt.

    Attributes:
        name: Its class, and how many images of it the hospital has in the split.
        views: At STRENGTHS, float (strengths, channels, height, width) in [0, 1], on the CPU.
        change: log(A~ / A) at full strength, float64 (channels, height, width), unshifted.
    """

    name: str
    views: Tensor
    change: Tensor


@dataclass(frozen=True)
class HospitalPrompts:
    """One hospital's prompts.

    Attributes:
        partition_id: Which client.
        name: Of the hospital.
        round_number: In which the hospital last trained with these prompts.
        num_train: Training images of the hospital.
        portrait: The measures.
        examples: Images, of the most frequent class and of the rarest.
    """

    partition_id: int
    name: str
    round_number: int
    num_train: int
    portrait: Portrait
    examples: tuple[Example, ...]

    @property
    def plane(self) -> Tensor:
        """What hospitals are compared by: the mean log-gain, or the mean change where no gain is.

        Float64 (channels, height, width), unshifted.
        """
        gains = self.portrait.log_gains
        return self.portrait.changes if gains is None else gains.mean(0)


def require_prompts(run: OpenedRun) -> None:
    """Refuse a run that has no prompts to look at, or not with its own teacher (ConfigError)."""
    run.require_named("teacher")
    run.require_named("images")
    objective = run.recipe.objective.name
    if objective != "fopro":
        raise ConfigError(
            f"objective.name is {objective!r} in {run.path / 'config.toml'}; only 'fopro' has "
            "Fourier prompts: run the recipe with objective.name=fopro"
        )
    folder = run.path / PROMPTS
    if not any(folder.glob("client-*.safetensors")):
        raise ConfigError(
            f"{folder} has no client-<id>.safetensors: the run (status "
            f"{run.summary.get('status')!r}) is of an older fedkd, or ended before its first "
            f"exploration; run it again: fedkd run {run.path / 'config.toml'}"
        )


def open_prompts(
    run: OpenedRun, experiment: Experiment, split: Split, num_examples: int, seed: int
) -> tuple[list[HospitalPrompts], dict[str, str]]:
    """Read and measure the prompts of every hospital that has some.

    Args:
        run: Of the objective fopro.
        experiment: As the run gives it.
        split: Whose images the prompts are measured on: the hospital's own.
        num_examples: Images to show of each hospital, >= 1.
        seed: Of latents and images.

    Returns:
        The hospitals, and the names of those left out with the reason.

    Raises:
        DataError: A file that does not fit the run, or no hospital is left.
    """
    hospitals, left_out = [], {}
    for client, name in enumerate(experiment.partition.client_names):
        path = path_of(run.path / PROMPTS, client)
        loader = (
            experiment.loader(client)
            if split == "train"
            else experiment.held_out_loader(split, client)
        )
        if not path.is_file():
            left_out[name] = "it has not trained"
        elif not len(loader):
            left_out[name] = f"it has no {split} images"
        else:
            logger.info("measuring the prompts of %s ...", name)
            hospitals.append(_open(path, experiment, client, loader, num_examples, seed))
    if not hospitals:
        raise DataError(
            f"no hospital of {run.path} has both prompts and {split} images; the other split is "
            f"--split {'val' if split == 'train' else 'train'}"
        )
    return hospitals, left_out


def _open(
    path: Path, experiment: Experiment, client: int, loader: Loader, num_examples: int, seed: int
) -> HospitalPrompts:
    channels, height, width = experiment.splits.train.images.shape[1:]
    config = experiment.recipe.prompts
    prompter, round_number = load_prompts(path, config, channels, height, width)
    if prompter.generator is not None:
        prompter.generator.to(experiment.device, experiment.dtype)
    rows = seeding.rng(seed, "portrait-images", client)
    some = rows.choice(len(loader), min(NUM_IMAGES, len(loader)), replace=False)
    latents = seeding.generator(seed, "portrait", client)
    portrait = portray(prompter, experiment.teacher_of(client), loader.pixels(some), latents)
    # Amplitudes of another image can only be had from another image.
    chosen = examples_of(loader.labels, max(num_examples, 2), rows)
    views = prompted_at(prompter, loader.pixels(chosen), latents, STRENGTHS).cpu()
    names, counts = experiment.splits.train.class_names, loader.class_counts()
    examples = tuple(
        Example(
            f"{names[label]} ({counts[label]} of {len(loader)})",
            views[:, number],
            spectral_change(views[:1, number], views[-1:, number]),
        )
        for number, label in enumerate(loader.labels[chosen])
    )
    return HospitalPrompts(
        client,
        experiment.partition.client_names[client],
        round_number,
        len(experiment.partition.indices[client]),
        portrait,
        examples[:num_examples],
    )


def examples_of(labels: Integers, num: int, rng: np.random.Generator) -> Integers:
    """Positions of images to show: the most frequent class first, then from the rarest on.

    Classes without images are passed over; when every class has had its turn, they all have
    another. Fewer than ``num`` where there are fewer images.

    Args:
        labels: Classes, int64 (num_images,).
        num: How many, >= 1.
        rng: Draws the image of a class.
    """
    classes, counts = np.unique(labels, return_counts=True)
    rarest_first = classes[np.argsort(counts, kind="stable")]
    turns = [rarest_first[-1], *rarest_first[:-1]]
    waiting = {label: list(rng.permutation(np.flatnonzero(labels == label))) for label in turns}
    chosen: list[int] = []
    while len(chosen) < min(num, len(labels)):
        for label in turns:
            if waiting[label] and len(chosen) < num:
                chosen.append(waiting[label].pop())
    return np.asarray(chosen, np.int64)


def numbers_table(hospitals: list[HospitalPrompts]) -> pd.DataFrame:
    """A row per hospital: its measures, see :class:`Portrait`."""
    return pd.DataFrame(
        {
            "partition_id": one.partition_id,
            "client": one.name,
            "round": one.round_number,
            "num_train": one.num_train,
            **one.portrait.numbers(),
            "collapsed": one.portrait.collapsed,
        }
        for one in hospitals
    )


def profiles_table(hospitals: list[HospitalPrompts]) -> pd.DataFrame:
    """A row per hospital, channel and ring: log-gain (mean and sd over prompts), spectral change.

    ``frequency`` is a fraction of the axes' highest, 0 being the mean of the image.
    """
    tables = []
    for one in hospitals:
        changes = radial_profile(one.portrait.changes)
        gains = one.portrait.log_gains
        profiles = None if gains is None else radial_profile(gains)
        frequencies = profile_frequencies(one.portrait.changes)
        for channel, change in enumerate(changes):
            columns = {
                "partition_id": one.partition_id,
                "client": one.name,
                "channel": channel,
                "frequency": frequencies,
                "log_amplitude_change": change,
            }
            if profiles is not None:
                columns["log_gain_mean"] = profiles[:, channel].mean(0)
                columns["log_gain_sd"] = profiles[:, channel].std(0)
            tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def profile_frequencies(plane: Tensor) -> Tensor:
    """Frequencies of :func:`fedkd.fourier.portrait.radial_profile`, float64 (K + 1,)."""
    height, width = plane.shape[-2:]
    return torch.cat([torch.zeros(1, dtype=torch.float64), ring_frequencies(height, width)])
