"""Teachers by name: the embedded default, and known models with a local checkpoint."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import torch
import torchvision
from pydantic import Field, model_validator
from torch import nn

from fedkd import paths
from fedkd.config import Section
from fedkd.errors import ConfigError, StudentError, TeacherError
from fedkd.models.factory import IMAGENET_MEAN, IMAGENET_STD, headless
from fedkd.teachers.checkpoints import check_file, load_strictly, read_state
from fedkd.teachers.dead_leaves import dead_leaves
from fedkd.teachers.from_timm import open_timm
from fedkd.teachers.frozen import Teacher
from fedkd.teachers.moco import open_moco
from fedkd.teachers.pretrain import load_pretrained

logger = logging.getLogger(__name__)

WEIGHTS = Path(__file__).parent / "weights"
Channels = tuple[float, float, float]


class OneTeacherConfig(Section):
    """A frozen network that hospitals distil from."""

    name: Literal["default", "pretrained", "torchvision", "moco_v2", "timm"] = "default"
    """default: shipped with fedkd. pretrained: a file that `fedkd pretrain` wrote. torchvision:
    any torchvision classification model with a checkpoint on this machine. moco_v2: ResNet-50 with
    a checkpoint in the format of the MoCo authors. timm: any model of timm with a checkpoint, such
    as DINOv2 (needs the extra `timm`)."""
    checkpoint: str = ""
    """File of the weights, for all but default; may hold ${VARIABLES}."""
    sha256: str = ""
    """Expected SHA-256 of the checkpoint, 64 hexadecimal digits; empty means not checked."""
    architecture: str = ""
    """Name of the model in torchvision (mobilenet_v2) or timm (vit_small_patch14_dinov2)."""
    mean: Channels = IMAGENET_MEAN
    """Channel means of the input normalisation; for torchvision and moco_v2."""
    std: Channels = IMAGENET_STD
    """Channel deviations of the input normalisation; for torchvision and moco_v2."""
    input_size: int | None = Field(default=None, ge=16)
    """Side in px to which images are resized for the teacher; not given means as they come."""
    reference_images: int = Field(default=256, ge=32)
    """Procedural natural images on which feature moments are measured, for Fourier prompts from a
    teacher without usable BatchNorm statistics."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.name in ("torchvision", "timm") and not self.architecture:
            raise ValueError(
                f"teacher.architecture must name a model of {self.name}, as "
                f"{'mobilenet_v2' if self.name == 'torchvision' else 'vit_small_patch14_dinov2'}"
            )
        if self.name != "default" and not self.checkpoint:
            raise ValueError(
                f"teacher.checkpoint must name a file when teacher.name is {self.name}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"teacher.std is {self.std}; every value must be > 0")
        return self


class ClientTeacherConfig(OneTeacherConfig):
    """The teacher of some of the clients."""

    clients: tuple[str, ...] = Field(min_length=1)
    """Names of the clients, as `fedkd partition` prints them."""


class TeacherConfig(OneTeacherConfig):
    """The frozen network that hospitals distil from."""

    by_client: tuple[ClientTeacherConfig, ...] = ()
    """Other teachers for some clients: tables [[teacher.by_client]] with the keys of [teacher] and
    `clients`, the names of the clients that have it. All teachers have the same number of
    features."""

    def of_clients(self, names: Sequence[str]) -> list[OneTeacherConfig]:
        """The teacher of each client; the same object for clients that share one.

        Raises:
            ConfigError: A client that is named twice or does not exist.
        """
        found: dict[str, OneTeacherConfig] = {}
        for number, config in enumerate(self.by_client):
            for name in config.clients:
                key = f"teacher.by_client.{number}.clients"
                if name in found:
                    raise ConfigError(f"{key} names {name!r} again; a client has one teacher")
                if name not in names:
                    raise ConfigError(
                        f"{key} names {name!r}, which is no client; the clients are "
                        f"{', '.join(names)}: correct the name, or set teacher.by_client = []"
                    )
                found[name] = config
        return [found.get(name, self) for name in names]


TEACHERS: dict[str, str] = {
    "default": "embedded ResNet-10, SimCLR on procedural dead leaves, 480 features",
    "pretrained": "a file that `fedkd pretrain` wrote (teacher.checkpoint)",
    "torchvision": "any torchvision classifier (teacher.architecture, teacher.checkpoint)",
    "moco_v2": "ResNet-50, self-supervised on ImageNet (He et al. 2020; teacher.checkpoint)",
    "timm": "any model of timm, such as DINOv2 (teacher.architecture, teacher.checkpoint)",
}


def open_teacher(config: OneTeacherConfig) -> Teacher:
    """Load the teacher that the config names, frozen.

    Raises:
        TeacherError: Missing file, wrong hash, wrong keys or shapes, unknown architecture.
    """
    if config.name == "default":
        card = json.loads((WEIGHTS / "default.json").read_text(encoding="utf-8"))
        return _open_pretrained(WEIGHTS / "default.safetensors", card["sha256"], config)
    path = paths.expand(config.checkpoint, "teacher.checkpoint")
    if config.name == "pretrained":
        return _open_pretrained(path, config.sha256, config)
    if config.name == "torchvision":
        return _open_torchvision(path, config)
    check_file(path, config.sha256, "teacher.checkpoint")
    if config.name == "moco_v2":
        return open_moco(path, config.mean, config.std, config.input_size)
    return open_timm(config.architecture, path, config.input_size)


def measure_reference(teacher: Teacher, config: OneTeacherConfig, image_size: int) -> None:
    """Give the teacher a prior from procedural natural images, if its own BatchNorm has none.

    Source: the specification of FPG; for folded or absent BatchNorm, moments measured once on
    natural images rank prompts as true running statistics do.
    """
    if teacher.has_reference:
        return
    logger.info("measuring the teacher's feature moments on procedural images")
    images = dead_leaves(config.reference_images, image_size, seed=0)
    starts = range(0, len(images), 64)
    teacher.measure_reference(torch.from_numpy(images[i : i + 64]) / 255 for i in starts)


def _open_pretrained(path: Path, sha256: str, config: OneTeacherConfig) -> Teacher:
    check_file(path, sha256, "teacher.checkpoint")
    backbone, projector, metadata = load_pretrained(path)
    width = next(m for m in projector.modules() if isinstance(m, nn.Linear)).in_features
    return Teacher(
        config.name,
        backbone,
        num_features=backbone.num_features,
        mean=json.loads(metadata["mean"]),
        std=json.loads(metadata["std"]),
        input_size=config.input_size,
        head=projector,
        head_kind="contrastive",
        # The projector was trained on the last stage alone, which comes last in the features.
        head_slice=slice(backbone.num_features - width, None),
    )


def _open_torchvision(path: Path, config: OneTeacherConfig) -> Teacher:
    known = torchvision.models.list_models(module=torchvision.models)
    if config.architecture not in known:
        raise TeacherError(
            f"teacher.architecture is {config.architecture!r}; it must be one of torchvision's "
            f"classification models, such as {', '.join(known[:3])}, mobilenet_v2, resnet50"
        )
    check_file(path, config.sha256, "teacher.checkpoint")
    network = torchvision.models.get_model(config.architecture, weights=None)
    load_strictly(network, read_state(path), path)
    try:
        backbone, head = headless(network)
    except StudentError as error:
        raise TeacherError(f"teacher.architecture is {config.architecture!r}: {error}") from None
    return Teacher(
        config.architecture,
        backbone,
        num_features=head.in_features,
        mean=config.mean,
        std=config.std,
        input_size=config.input_size,
        head=head,
        head_kind="supervised",
    )
