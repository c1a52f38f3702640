"""Opening of one teacher: its file found, checked, read by its layout, and frozen."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from torch import nn

from fedkd import paths
from fedkd.errors import TeacherError
from fedkd.fetching import KnownHash, read_note
from fedkd.teachers import zoo
from fedkd.teachers.card import Layout, TeacherCard
from fedkd.teachers.checkpoints import Parts, check_hash, published_hash
from fedkd.teachers.config import OneTeacherConfig
from fedkd.teachers.embedded import embedded_weights
from fedkd.teachers.frozen import Teacher
from fedkd.teachers.layouts.from_timm import open_timm
from fedkd.teachers.layouts.from_torchvision import open_torchvision
from fedkd.teachers.layouts.moco_v2 import open_moco
from fedkd.teachers.layouts.radimagenet import open_radimagenet
from fedkd.teachers.stored import load_pretrained

logger = logging.getLogger(__name__)

LAYOUTS: dict[Layout, Callable[[TeacherCard, Path, int | None], Parts]] = {
    "moco_v2": open_moco,
    "radimagenet": open_radimagenet,
    "torchvision": open_torchvision,
    "timm": open_timm,
}


def weights_path(config: OneTeacherConfig) -> Path:
    """Where the weights of a teacher lie, whether they are there or not."""
    if config.name == "default":
        return embedded_weights()
    if config.checkpoint:
        return paths.expand(config.checkpoint, "teacher.checkpoint")
    download = zoo.card_of(config.name).download
    name = download.path if download else f"{config.name}.pt"
    return paths.teachers_dir() / name


def expected_hash(config: OneTeacherConfig) -> KnownHash | None:
    """The config's hash, else the published one, or that noted at fetching; None: no check."""
    if config.sha256:
        return KnownHash("sha256", config.sha256.lower())
    if config.name == "default":
        card = json.loads((zoo.WEIGHTS / "default.json").read_text(encoding="utf-8"))
        return KnownHash("sha256", card["sha256"])
    if config.name == zoo.PRETRAINED:
        return None
    published = published_hash(zoo.card_of(config.name).download)
    if config.checkpoint or (published and published.is_whole):
        return published
    # Made when the file was fetched, as nobody published a whole hash.
    return read_note(weights_path(config)) or published


def open_teacher(config: OneTeacherConfig) -> Teacher:
    """Load the teacher that the config names, frozen.

    Raises:
        TeacherError: Missing file, wrong hash, wrong keys or shapes, unknown architecture.
        DependencyError: An extra that is not installed.
    """
    path = weights_path(config)
    if not path.is_file():
        raise _missing(config, path)
    check_hash(path, expected_hash(config))
    logger.info("opening the teacher %s from %s", config.name, path)
    if config.name in ("default", zoo.PRETRAINED):
        return _open_pretrained(path, config)
    card = zoo.card_of(config.name)
    parts = LAYOUTS[card.layout](card, path, config.side)
    return Teacher(
        config.name,
        parts.backbone,
        num_features=parts.num_features,
        mean=config.mean or card.mean,
        std=config.std or card.std,
        input_size=parts.input_size,
        head=parts.head,
        head_kind=card.head if parts.head is not None else "none",
        precision=config.precision,
    )


def _missing(config: OneTeacherConfig, path: Path) -> TeacherError:
    if config.name == "default":
        return TeacherError(
            f"the shipped teacher {path} is missing, and no fedkd that has it is installed in "
            f"{sys.prefix}; install fedkd there (pip install <folder or wheel of fedkd>), as every "
            "site of a federation must"
        )
    if config.checkpoint:
        return TeacherError(
            f"teacher.checkpoint is {path}, but there is no such file; put it there or change "
            "the key"
        )
    card = zoo.card_of(config.name)
    text = f"the teacher {config.name} is not here; its file belongs at {path}"
    known = published_hash(card.download) or "no hash is published"
    if card.download is None or not card.download.url:
        steps = card.steps or "name a file of yours in teacher.checkpoint"
        return TeacherError(f"{text} ({known}): {steps}")
    return TeacherError(
        f"{text}: run `fedkd teachers fetch {config.name}`, or offline, get {card.download.url} "
        f"({known}) elsewhere and put it there"
    )


def _open_pretrained(path: Path, config: OneTeacherConfig) -> Teacher:
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
        precision=config.precision,
    )
