"""``fedkd pretrain``: a self-supervised teacher made from one's own images, or from nothing."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedkd import seeding
from fedkd.data.pixels import Pixels
from fedkd.device import choose_device
from fedkd.models.factory import STUDENTS
from fedkd.models.small_resnet import num_deepest
from fedkd.models.states import mismatches
from fedkd.pretraining.config import PretrainConfig
from fedkd.pretraining.editing import describe_edit, edit_images
from fedkd.pretraining.images import (
    MEAN,
    STD,
    content_hash,
    describe,
    normalize,
    pixels_of,
    read_images,
)
from fedkd.pretraining.momentum import MomentumContrast, new_queue
from fedkd.pretraining.probing import ValProbe
from fedkd.pretraining.simclr import SimCLR, random_views
from fedkd.pretraining.statistics import measure_statistics
from fedkd.pretraining.training import Checkpoint, Position, make_optimizer, train
from fedkd.teachers.embedded import embedded_weights
from fedkd.teachers.stored import (
    HeadName,
    StoredTeacher,
    build_head,
    load_pretrained,
    round_weights,
    write_teacher,
)

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, dict[str, float]], None]
Learner = SimCLR | MomentumContrast

METHODS = {
    "simclr": "SimCLR with the decoupled contrastive loss",
    "moco_v2": "MoCo v2 on one machine, without shuffled BatchNorm, with SimCLR's views",
}


def pretrain(config: PretrainConfig, out_dir: Path, progress: Progress | None = None) -> Path:
    """Pre-train and write ``<name>.safetensors`` and its card ``<name>.json``.

    Weights are stored as float16, BatchNorm tensors as float32; what is loaded is what is stored.
    The same recipe gives the same file on one machine with one number of threads, interrupted or
    not; on another the last bits of sums differ, and training makes them grow.

    Meanwhile ``<name>.checkpoint.pt`` lies beside them, from which the same call goes on; it is
    removed at the end.

    Args:
        config: The recipe.
        out_dir: Folder, made if it is missing.
        progress: Told steps done, all steps and values to show: the loss and images_per_s.

    Returns:
        The path of the weights.

    Raises:
        FedkdError: Images, device or checkpoint that cannot be used, or a loss that is not finite.
    """
    device = choose_device(config.device, "device")
    probe = ValProbe(config.probe, config.reading_size) if config.probe.data else None
    logger.info("images: %s ...", describe(config.images))
    images, edited = edit_images(read_images(config), config.edit)
    images_sha256 = content_hash(images)
    if config.method == "simclr" and config.batch_size > len(images):
        logger.warning(
            "batch_size is %d, but there are %d images: a step meets an image several times and "
            "takes it for others; a smaller batch suits them better",
            config.batch_size,
            len(images),
        )
    learner, num_features = _make_learner(config, len(images), device)
    optimizer = make_optimizer(learner, config)
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / f"{config.name}.safetensors"
    if path.exists():
        logger.warning("%s is there already; it will be replaced at the end", path)
    checkpoint = Checkpoint(checkpoint_path(config, out_dir), config.record(), images_sha256)
    position = checkpoint.load(learner, optimizer)
    first, before, began = position.step, position.seconds, time.monotonic()
    saved = began

    def draw(step: int) -> tuple[Tensor, Tensor]:
        rows = seeding.rng(config.seed, "pretrain-batch", step).integers(
            len(images), size=config.batch_size
        )
        pixels = pixels_of(images, rows, device)
        generator = seeding.generator(config.seed, "pretrain-views", step)
        views = [random_views(pixels, config.view_size, generator) for _ in range(2)]
        return normalize(views[0]), normalize(views[1])

    def on_step(step: int, loss: float) -> None:
        nonlocal saved
        now = time.monotonic()
        values = {"loss": loss}
        values["images_per_s"] = (step - first) * config.batch_size / max(now - began, 1e-9)
        if probe and config.probe.every and step % config.probe.every == 0 and step < config.steps:
            found = probe.scores(learner.backbone, ["knn"])
            logger.info(
                "step %d: kNN balanced accuracy %.3f on val", step, found["knn_balanced_accuracy"]
            )
            position.history.append({"step": step, **found})
        position.step, position.seconds = step, before + time.monotonic() - began
        try:
            if progress:
                progress(step, config.steps, values)
        except KeyboardInterrupt:
            checkpoint.save(learner, optimizer, position)
            raise
        if step == config.steps or now - saved >= 60 * config.checkpoint_minutes:
            checkpoint.save(learner, optimizer, position)
            saved = time.monotonic()

    train(learner, optimizer, draw, config, first, on_step)
    backbone, head = learner.backbone, learner.head
    round_weights(backbone, head)
    logger.info("measuring BatchNorm statistics at %d px ...", config.reading_size)
    measure_statistics(backbone, head, images, config)
    if probe:
        position.history.append({"step": config.steps, **probe.scores(backbone)})
    position.seconds = before + time.monotonic() - began
    teacher = StoredTeacher(
        config.architecture,
        backbone.cpu(),
        num_features,
        cast(nn.Sequential, head.cpu()),
        MEAN,
        STD,
    )
    card = _card(config, teacher, images, images_sha256, position)
    if edited:
        card["data"] += f"; edited: {describe_edit(config.edit)}"
        card["edit"] = edited
    write_teacher(path, teacher, _metadata(config), {**card, "device": str(device)})
    checkpoint.remove()
    return path


def checkpoint_path(config: PretrainConfig, out_dir: Path) -> Path:
    """Where the checkpoint of an unfinished pre-training lies."""
    return out_dir / f"{config.name}.checkpoint.pt"


def _make_learner(
    config: PretrainConfig, num_images: int, device: torch.device
) -> tuple[Learner, int]:
    """What is trained, with its first weights, and the width of the backbone's features."""
    kind: HeadName = "batchnorm" if config.method == "simclr" else "plain"
    with seeding.isolated(config.seed, "pretrain"):
        backbone, num_features = STUDENTS[config.architecture].build()
        backbone = backbone.to(memory_format=torch.channels_last)
        width = num_deepest(backbone, num_features)
        head = build_head(kind, width, config.num_hidden, config.num_outputs)
    if config.init == "default":
        embedded = load_pretrained(embedded_weights())
        backbone.load_state_dict(embedded.backbone.state_dict())
        if not mismatches(head.state_dict(), embedded.head.state_dict()):
            head.load_state_dict(embedded.head.state_dict())
    bfloat16 = config.precision == "bfloat16"
    if config.method == "simclr":
        return SimCLR(backbone, head, config.temperature, bfloat16).to(device), num_features
    queue = new_queue(
        config.queue_size,
        num_images,
        config.num_outputs,
        seeding.generator(config.seed, "pretrain-queue"),
    )
    logger.info("queue: %d keys", len(queue))
    learner = MomentumContrast(
        backbone,
        head,
        queue,
        momentum=config.momentum,
        temperature=config.temperature,
        bfloat16=bfloat16,
    )
    return learner.to(device), num_features


def _metadata(config: PretrainConfig) -> dict[str, str]:
    # Without the name, so that a file's hash does not depend on what it is called.
    record = {key: value for key, value in config.record().items() if key != "name"}
    return {
        "reading_size": str(config.reading_size),
        "config": json.dumps(record, separators=(",", ":")),
    }


def _card(
    config: PretrainConfig,
    teacher: StoredTeacher,
    images: Pixels,
    images_sha256: str,
    position: Position,
) -> dict[str, Any]:
    procedural = config.images.source == "dead_leaves"
    where = f"{len(images)} procedural dead leaves images, no data set"
    card = {
        "name": config.name,
        "architecture": config.architecture,
        "num_features": teacher.num_features,
        "num_parameters": sum(p.numel() for p in teacher.backbone.parameters()),
        "head": "contrastive",
        "method": METHODS[config.method]
        + (", from the embedded teacher's weights" if config.init == "default" else ""),
        "data": where if procedural else f"{len(images)} images of {describe(config.images)}",
        "images_sha256": images_sha256,
        "mean": MEAN,
        "std": STD,
        "reading_size": config.reading_size,
        "config": config.record(),
        "batchnorm_statistics": (
            f"plain averages over {config.statistics_batches} batches of whole images at "
            f"{config.reading_size} px, measured after training with the stored weights"
        ),
        "licence": "Apache-2.0" if procedural else "that of your images",
        "seconds": round(position.seconds, 1),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    if config.probe.data is not None:
        card["probe_history"] = {
            "data": config.probe.data.name,
            "split": "val, on which the linear probe's strength was chosen, too",
            "size": config.reading_size,
            "rows": position.history,
        }
    return card
