"""Opening of one teacher: its file found, checked, read by its layout, and frozen."""

import json
from pathlib import Path

import torchvision
from torch import nn

from fedkd import paths
from fedkd.errors import StudentError, TeacherError
from fedkd.models.factory import headless
from fedkd.teachers import zoo
from fedkd.teachers.card import TeacherCard
from fedkd.teachers.checkpoints import check_file, load_strictly, read_state
from fedkd.teachers.config import OneTeacherConfig
from fedkd.teachers.from_timm import open_timm
from fedkd.teachers.frozen import Teacher
from fedkd.teachers.moco import open_moco
from fedkd.teachers.stored import load_pretrained


def weights_path(config: OneTeacherConfig) -> Path:
    """Where the weights of a teacher lie, whether they are there or not."""
    if config.name == "default":
        return zoo.WEIGHTS / "default.safetensors"
    if config.checkpoint:
        return paths.expand(config.checkpoint, "teacher.checkpoint")
    download = zoo.card_of(config.name).download
    name = download.path if download else f"{config.name}.pt"
    return paths.teachers_dir() / name


def open_teacher(config: OneTeacherConfig) -> Teacher:
    """Load the teacher that the config names, frozen.

    Raises:
        TeacherError: Missing file, wrong hash, wrong keys or shapes, unknown architecture.
        DependencyError: An extra that is not installed.
    """
    path = weights_path(config)
    if config.name == "default":
        card = json.loads((zoo.WEIGHTS / "default.json").read_text(encoding="utf-8"))
        return _open_pretrained(path, card["sha256"], config)
    if config.name == zoo.PRETRAINED:
        return _open_pretrained(path, config.sha256, config)
    card = zoo.card_of(config.name)
    check_file(path, config.sha256, "teacher.checkpoint")
    if card.layout == "moco_v2":
        return open_moco(path, config.mean or card.mean, config.std or card.std, config.side)
    if card.layout == "torchvision":
        return _open_torchvision(path, card, config)
    return open_timm(config.name, card.architecture, path, config.side)


def _open_pretrained(path: Path, sha256: str, config: OneTeacherConfig) -> Teacher:
    check_file(path, sha256, "teacher.checkpoint")
    stored = load_pretrained(path)
    width = next(m for m in stored.head.modules() if isinstance(m, nn.Linear)).in_features
    return Teacher(
        config.name,
        stored.backbone,
        num_features=stored.num_features,
        mean=config.mean or stored.mean,
        std=config.std or stored.std,
        input_size=config.side,
        head=stored.head,
        head_kind="contrastive",
        # The head was trained on the last stage alone, which comes last in the features.
        head_slice=slice(stored.num_features - width, None),
    )


def _open_torchvision(path: Path, card: TeacherCard, config: OneTeacherConfig) -> Teacher:
    network = torchvision.models.get_model(card.architecture, weights=None)
    load_strictly(network, read_state(path), path)
    try:
        backbone, head = headless(network)
    except StudentError as error:
        raise TeacherError(f"teacher.name is {config.name!r}: {error}") from None
    return Teacher(
        config.name,
        backbone,
        num_features=head.in_features,
        mean=config.mean or card.mean,
        std=config.std or card.std,
        input_size=config.side,
        head=head,
        head_kind="supervised",
    )
