"""``fedkd pretrain``: a small self-supervised teacher made from nothing, offline."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fedkd import seeding
from fedkd.config import Section
from fedkd.models.small_resnet import SmallResNet, resnet10
from fedkd.teachers.dead_leaves import dead_leaves
from fedkd.teachers.simclr import Projector, random_views, train_simclr
from fedkd.teachers.stored import StoredTeacher, round_weights, write_teacher

MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
"""Input normalisation: our choice for procedural images, whose channels are alike."""


class PretrainConfig(Section):
    """SimCLR on procedural dead leaves images."""

    name: str = Field(default="teacher", pattern=r"^[\w.-]+$")
    """Name of the files that are written."""
    seed: int = Field(default=0, ge=0)
    """Seed of images, initial weights and views."""
    num_images: int = Field(default=12_000, ge=2)
    """Procedural images; every step draws from them."""
    source_size: int = Field(default=64, ge=8)
    """Side of the procedural images in px, from which views are cropped."""
    view_size: int = Field(default=32, ge=8)
    """Side of the training views in px."""
    reading_size: int = Field(default=64, ge=8)
    """Side in px at which the teacher will be used; BatchNorm statistics are measured there."""
    steps: int = Field(default=480, ge=1)
    """Optimiser steps."""
    warm_up_steps: int = Field(default=20, ge=0)
    """Steps of linear warm-up; fewer than steps."""
    batch_size: int = Field(default=256, ge=2)
    """Images per step; each gives two views."""
    temperature: float = Field(default=0.2, gt=0)
    """Temperature of the contrastive loss."""
    learning_rate: float = Field(default=4e-3, gt=0)
    """Highest step size of AdamW."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Decoupled weight decay."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the backbone's convolutions while training; weights and statistics stay float32."""
    num_hidden: int = Field(default=256, ge=1)
    """Hidden width of the contrastive head."""
    num_outputs: int = Field(default=128, ge=1)
    """Output width of the contrastive head."""
    statistics_batches: int = Field(default=40, ge=1)
    """Batches over which the final BatchNorm statistics are averaged."""

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "PretrainConfig":
        if self.warm_up_steps >= self.steps:
            raise ValueError(
                f"warm_up_steps is {self.warm_up_steps}; it must be below steps = {self.steps}"
            )
        return self


Progress = Callable[[int, int, dict[str, float]], None]


def pretrain(config: PretrainConfig, out_dir: Path, progress: Progress | None = None) -> Path:
    """Pre-train and write ``<name>.safetensors`` and its card ``<name>.json``.

    Weights are stored as float16, BatchNorm tensors as float32; what is loaded is what is stored.
    The same recipe gives the same file on one machine with one number of threads; on another the
    last bits of sums differ, and training makes them grow.

    Args:
        config: The recipe.
        out_dir: Folder, made if it is missing.
        progress: Told steps done, all steps and values to show.

    Returns:
        The path of the weights.
    """
    images = torch.from_numpy(dead_leaves(config.num_images, config.source_size, config.seed))

    def draw(step: int) -> tuple[Tensor, Tensor]:
        rows = seeding.rng(config.seed, "pretrain-batch", step).integers(
            len(images), size=config.batch_size
        )
        pixels = images[torch.from_numpy(rows)].float() / 255
        generator = seeding.generator(config.seed, "pretrain-views", step)
        first = random_views(pixels, config.view_size, generator)
        return first, random_views(pixels, config.view_size, generator)

    def on_step(step: int, loss: float) -> None:
        if progress:
            progress(step, config.steps, {"loss": loss})

    with seeding.isolated(config.seed, "pretrain"):
        backbone = resnet10().to(memory_format=torch.channels_last)
        projector = Projector(256, config.num_hidden, config.num_outputs)
    train_simclr(
        backbone,
        projector,
        normalize,
        draw,
        steps=config.steps,
        warm_up_steps=config.warm_up_steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        temperature=config.temperature,
        bfloat16=config.precision == "bfloat16",
        on_step=on_step,
    )
    round_weights(backbone, projector)
    measure_statistics(backbone, projector, images, config)
    return _write(config, backbone, projector, out_dir)


def normalize(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] to the network's input."""
    return (pixels - MEAN[0]) / STD[0]


@torch.no_grad()
def measure_statistics(
    backbone: SmallResNet, projector: nn.Module, images: Tensor, config: PretrainConfig
) -> None:
    """Replace BatchNorm's running statistics by plain averages over whole images, in place.

    The running averages of training lag behind the weights and describe crops at ``view_size``; the
    Fourier prompts compare with them at ``reading_size``, so there they are measured.
    """
    norms = [
        module
        for network in (backbone, projector)
        for module in network.modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    ]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # cumulative average
    backbone.train()
    projector.train()
    for number in range(config.statistics_batches):
        rows = seeding.rng(config.seed, "pretrain-statistics", number).integers(
            len(images), size=min(config.batch_size, 128)
        )
        pixels = images[torch.from_numpy(rows)].float() / 255
        if config.reading_size != config.source_size:
            size = (config.reading_size, config.reading_size)
            pixels = nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
        projector(backbone.pooled_stages(normalize(pixels))[-1])
    for module in norms:
        module.momentum = 0.1
    backbone.eval()
    projector.eval()


def _write(config: PretrainConfig, backbone: nn.Module, projector: Projector, folder: Path) -> Path:
    teacher = StoredTeacher("resnet10", backbone, 480, projector, MEAN, STD)
    path = folder / f"{config.name}.safetensors"
    metadata = {
        "reading_size": str(config.reading_size),
        # Without the name, so that a file's hash does not depend on what it is called.
        "config": config.model_dump_json(exclude={"name"}),
    }
    card = {
        "name": config.name,
        "architecture": "resnet10",
        "num_features": 480,
        "num_parameters": sum(p.numel() for p in backbone.parameters()),
        "head": "contrastive",
        "method": "SimCLR with the decoupled contrastive loss",
        "data": f"{config.num_images} procedural dead leaves images, no data set",
        "mean": MEAN,
        "std": STD,
        "reading_size": config.reading_size,
        "config": config.model_dump(),
        "batchnorm_statistics": (
            f"plain averages over {config.statistics_batches} batches of whole images at "
            f"{config.reading_size} px, measured after training with the stored weights"
        ),
        "licence": "Apache-2.0",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    write_teacher(path, teacher, metadata, card)
    return path
