"""The recipe of ``fedkd pretrain``."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from fedkd.config import Section
from fedkd.data.catalog import DataConfig
from fedkd.recipe import PLACES

_LATER = {"method", "architecture", "init", "optimizer", "queue_size", "momentum", "images", "edit"}
"""Keys that the first recipes, whose files have their hash in a card, did not know."""


class ImagesConfig(Section):
    """The images that a teacher is pre-trained on; nobody asks for their labels."""

    source: Literal["dead_leaves", "folder", "data", "torchvision"] = "dead_leaves"
    """dead_leaves (procedural, from nothing), folder (all image files below a folder), data (the
    training images of a data set of fedkd; val and test are left alone) or torchvision (a data set
    of torchvision whose files are there already)."""
    folder: str | None = None
    """Folder of the images of source folder, or the root of the torchvision data set; may hold
    ${VARIABLES}."""
    data: DataConfig | None = None
    """The data set of source data, as a section [images.data] with the keys of [data] in a recipe;
    its images have the side that it says (data.size), not source_size."""
    torchvision: str | None = None
    """Name of the data set of source torchvision, such as CIFAR10 or STL10."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = {
            "dead_leaves": set(),
            "folder": {"folder"},
            "data": {"data"},
            "torchvision": {"torchvision", "folder"},
        }[self.source]
        for key in ("folder", "data", "torchvision"):
            given = getattr(self, key) is not None
            if given and key not in needed:
                raise ValueError(
                    f"images.{key} is given but images.source is {self.source!r}, which does not "
                    "use it; leave it out, or choose another source"
                )
            if not given and key in needed:
                raise ValueError(f"images.source is {self.source!r}, which needs images.{key}")
        return self


class EditConfig(Section):
    """Source editing: amplitudes of the images are changed by frequency before the training.

    Frequencies are radii: 0 is the mean, which stays, 1 the highest along an axis of the images as
    they are read. Random crops are enlarged to view_size, which moves their bands to lower radii.
    """

    name: Literal["none", "notch", "match"] = "none"
    """none, notch (a band is taken out) or match (the radial power spectrum becomes that of another
    data set, amplitudes being changed by a factor of 8 at most)."""
    centre: float = Field(default=0.65, gt=0, le=1.5)
    """Radius of the middle of the notch; corners reach to 1.41."""
    width: float = Field(default=0.05, gt=0, le=1)
    """Standard deviation of the notch, a radius."""
    depth: float = Field(default=1.0, ge=0, le=1)
    """Share of the amplitude that the notch takes away in its middle."""
    data: DataConfig | None = None
    """The data set to match, as a section [edit.data] with the keys of [data] in a recipe: its
    training images; val and test are left alone."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for key in sorted(self.model_fields_set - {"name", *self._used()}):
            raise ValueError(
                f"edit.{key} is given but edit.name is {self.name!r}, which does not use it; leave "
                "it out, or choose another name"
            )
        if self.name == "match" and self.data is None:
            raise ValueError("edit.name is 'match', which needs [edit.data], the data to match")
        return self

    def _used(self) -> tuple[str, ...]:
        return {"none": (), "notch": ("centre", "width", "depth"), "match": ("data",)}[self.name]

    def record(self) -> dict[str, Any]:
        """What the edited images depend on, without places on this machine."""
        return self.model_dump(
            mode="json", include={"name", *self._used()}, exclude={"data": PLACES}
        )


class ProbeConfig(Section):
    """What the features are worth while they are learned, on labelled images."""

    data: DataConfig | None = None
    """Labelled data set, as a section [probe.data] with the keys of [data] in a recipe: features of
    its training images are compared with those of its val images; test is left alone. Not given
    means no probe."""
    every: int = Field(default=0, ge=0)
    """Steps between two looks at the k nearest neighbours; 0 means only at the end, together with a
    linear probe."""


class PretrainConfig(Section):
    """Self-supervised pre-training of a teacher; by default SimCLR on dead leaves images."""

    name: str = Field(default="teacher", pattern=r"^\w[\w.-]*$")
    """Name of the files that are written."""
    seed: int = Field(default=0, ge=0)
    """Seed of images, initial weights and views."""
    num_images: int = Field(default=12_000, ge=2)
    """Procedural images, from which every step draws; other sources have as many as they have."""
    source_size: int = Field(default=64, ge=8)
    """Side of the images in px, from which views are cropped; at least 16 for files."""
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
    """Highest step size of the optimiser; it falls to 0 along a cosine. Of moco_v2 the default is
    1e-3: its keys are those of earlier weights, which must not be too far away."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Of adamw, decoupled; of sgd, added to the gradient."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the backbone's convolutions while training; weights and statistics stay float32."""
    num_hidden: int = Field(default=256, ge=1)
    """Hidden width of the contrastive head."""
    num_outputs: int = Field(default=128, ge=1)
    """Output width of the contrastive head."""
    statistics_batches: int = Field(default=40, ge=1)
    """Batches over which the final BatchNorm statistics are averaged."""
    method: Literal["simclr", "moco_v2"] = "simclr"
    """simclr (two views of an image agree, the other images of the batch do not) or moco_v2 (the
    others are a queue of keys from a slowly moving encoder: cheaper by a third, and content with
    small batches). Their losses do not compare, and that of moco_v2 may rise while it learns, as
    the keys of its queue become alike in age: judge by [probe]."""
    architecture: Literal["resnet10", "resnet18", "resnet50"] = "resnet10"
    """Network; resnet10 suits 28 to 64 px, the others, which are torchvision's, 64 px and more."""
    init: Literal["random", "default"] = "random"
    """First weights: drawn, or those of the embedded teacher, a resnet10, which then learn on from
    the new images; simclr also goes on from its contrastive head, if that has the same widths."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw, or sgd with momentum 0.9, for which the MoCo authors have learning_rate 0.03 at a
    batch of 256 and weight_decay 1e-4."""
    queue_size: int = Field(default=4096, ge=1)
    """Keys in the queue of moco_v2; at most half as many as there are images. The authors' 65,536
    are for the 1.28 million images of ImageNet."""
    momentum: float = Field(default=0.999, ge=0, lt=1)
    """Of the slowly moving encoder of moco_v2. Far below 0.99 all embeddings may move together, as
    the keys of the queue then differ by their age alone; the loss is small and nothing is learned
    (seen at 0.9)."""
    images: ImagesConfig = ImagesConfig()
    """Where the images come from."""
    edit: EditConfig = EditConfig()
    """What is done to them before the training."""
    probe: ProbeConfig = ProbeConfig()
    """What the features are worth, looked at meanwhile and at the end."""
    checkpoint_minutes: float = Field(default=5.0, ge=0)
    """Minutes between two checkpoints, from which the same command goes on after an interruption; 0
    means after every step."""
    device: str = "auto"
    """auto (the GPU if there is one), cpu, cuda, cuda:1 ..."""

    @model_validator(mode="before")
    @classmethod
    def _rate_of_method(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {"learning_rate": 1e-3, **given} if given.get("method") == "moco_v2" else given

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.warm_up_steps >= self.steps:
            raise ValueError(
                f"warm_up_steps is {self.warm_up_steps}; it must be below steps = {self.steps}"
            )
        # At 16 px their maps are one pixel wide before the last stage: in bfloat16 torch 2.15 reads
        # memory there that nobody has written, for the gradient of a convolution with stride 2.
        if self.architecture != "resnet10" and self.view_size < 32:
            raise ValueError(
                f"view_size is {self.view_size}; it must be at least 32 with architecture = "
                f"{self.architecture!r}, whose last stages would see a single pixel"
            )
        if self.init == "default" and self.architecture != "resnet10":
            raise ValueError(
                f"init is 'default' but architecture is {self.architecture!r}; the embedded "
                "teacher is a resnet10: set architecture = 'resnet10', or init = 'random'"
            )
        if self.images.source == "folder" and not 16 <= self.source_size <= 1024:
            raise ValueError(
                f"source_size is {self.source_size}; image files are resized to 16..1024 px"
            )
        return self

    def record(self) -> dict[str, Any]:
        """What the weights depend on, without places on this machine, for card and checkpoint.

        ``num_images`` is there for procedural images alone. Keys that came later are left out where
        they have their default: a recipe that is older than they are gives the file that it always
        gave.
        """
        values = self.model_dump(
            mode="json",
            exclude={
                "probe": True,
                "checkpoint_minutes": True,
                "device": True,
                "images": {"folder": True, "data": PLACES},
                "edit": True,
            },
            exclude_none=True,
        )
        values["edit"] = self.edit.record()
        if self.images.source != "dead_leaves":
            del values["num_images"]
        return {
            key: value
            for key, value in values.items()
            if key not in _LATER or getattr(self, key) != type(self).model_fields[key].default
        }
