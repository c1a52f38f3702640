"""The sections ``teacher`` and ``teacher.by_client`` of a recipe."""

import difflib
import re
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedkd.config import Section
from fedkd.data.augment import DIHEDRAL
from fedkd.errors import ConfigError
from fedkd.precision import Precision
from fedkd.teachers import zoo
from fedkd.teachers.card import Channels

InputSize = Literal["native", "as_is"] | int
MIN_SIDE = 16
"""Fewest px of a side to which images are resized for a teacher."""


class OneTeacherConfig(Section):
    """A frozen network that hospitals distil from."""

    name: str = "default"
    """A name that `fedkd teachers list` shows, such as default (shipped with fedkd), moco_v2_r50 or
    dinov2_vits14; timm:<model> or torchvision:<model>, any model of these libraries; or
    pretrained, a file that `fedkd pretrain` wrote."""
    checkpoint: str = ""
    """File of the weights; may hold ${VARIABLES}. Empty means where `fedkd teachers fetch` puts
    it."""
    sha256: str = ""
    """Expected SHA-256 of the checkpoint, hexadecimal, or its first digits, at least 8; empty means
    the published one, or no check where there is none."""
    mean: Channels | None = None
    """Channel means of the input normalisation; not given means the teacher's own."""
    std: Channels | None = None
    """Channel deviations of the input normalisation; not given means the teacher's own."""
    input_size: InputSize = "native"
    """Side in px to which images are resized for the teacher, at least 16; native is what its card
    says, as_is leaves them as the student gets them (as native for a transformer of timm, which
    takes one size alone)."""
    precision: Precision = "full"
    """full computes in training.dtype, or as engine.mixed_precision says. bfloat16 and float16:
    mixed precision (autocast), whatever that says, for processors that are faster with it; features
    are rounded (0.4 % and 0.02 % off for the default teacher). With float16, passes with gradients,
    for Fourier prompts, stay in full precision."""
    views: Literal["augmented", "clean", "dihedral"] = "augmented"
    """Image whose features are the target of ekd, and of fopro with prompts.kept_views, where it is
    prompted first and features are kept in memory. augmented: the one that the student sees, asked
    for in every step. The others are computed once and kept in FEDKD_CACHE; the teacher does not
    run during training. clean: the image without augmentation; with any augmentation but none this
    is another method, as the student is to match features of an image that it does not see.
    dihedral: the student's own flip and quarter turn without changes of colour, one of 8 (4 if
    images are not square); the same method with augmentation.name = dihedral, another one with
    dihedral_jitter, and refused with the rest."""
    reference: str = ""
    """Folder of natural images on which feature moments are measured, for Fourier prompts from a
    teacher without usable BatchNorm statistics; may hold ${VARIABLES}. It is searched with all that
    is in it, and must have 32 images at least. Empty means procedural images. Moments are measured
    once and kept with the teachers' files."""
    reference_images: int = Field(default=256, ge=32)
    """How many of them; of a folder with more, always the same choice."""

    @field_validator("input_size", mode="before")
    @classmethod
    def _is_a_size(cls, value: Any) -> Any:
        # One text for all; of a union pydantic has one for each of its kinds.
        if value in ("native", "as_is") or (type(value) is int and value >= MIN_SIDE):
            return value
        raise ValueError(f"it is {value!r}; it must be 'native', 'as_is' or px >= {MIN_SIDE}")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not zoo.known(self.name):
            near = difflib.get_close_matches(self.name, zoo.TEACHERS, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(
                f"teacher.name is {self.name!r}; {hint}`fedkd teachers list` shows all names, "
                "besides timm:<model>, torchvision:<model> and pretrained"
            )
        if self.checkpoint and self.name == "default":
            raise ValueError(
                f"teacher.checkpoint is {self.checkpoint!r}, but teacher.name = 'default' is the "
                "shipped teacher, which reads no other file; set teacher.name = 'pretrained' for a "
                "file that `fedkd pretrain` wrote, else the name of its network, or "
                'teacher.checkpoint = ""'
            )
        if not self.checkpoint and self.name.startswith((zoo.PRETRAINED, "torchvision:")):
            raise ValueError(
                f"teacher.checkpoint must name a file when teacher.name is {self.name}"
            )
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"teacher.std is {self.std}; every value must be > 0")
        if self.sha256 and not re.fullmatch("[0-9a-fA-F]{8,64}", self.sha256):
            raise ValueError(
                f"teacher.sha256 is {self.sha256!r}; it must be 8 to 64 hexadecimal digits, as "
                "`sha256sum FILE` prints them"
            )
        return self

    @property
    def side(self) -> int | None:
        """Side in px to which images are resized; None leaves them as they come."""
        if isinstance(self.input_size, int):
            return self.input_size
        if self.input_size == "as_is" or self.name == zoo.PRETRAINED:
            return None
        return zoo.card_of(self.name).input_size


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

    def check_views(self, objective: str, augmentation: str, kept_views: int = 0) -> None:
        """Refuse kept features (``views``) that would not be those that are needed (ValueError).

        Args:
            objective: Its name.
            augmentation: Its name.
            kept_views: ``prompts.kept_views``.
        """
        keys = {"teacher.views": self.views}
        for number, one in enumerate(self.by_client):
            keys[f"teacher.by_client.{number}.views"] = one.views
        for key, views in keys.items():
            if objective == "fopro" and views != "augmented" and not kept_views:
                raise ValueError(
                    f"{key} is {views!r}, but objective.name = 'fopro' draws a new prompt for "
                    "every image and step, so that no feature can be kept; set it to 'augmented', "
                    "prompts.kept_views to 3, say, or objective.name to 'ekd'"
                )
            bank = objective == "fopro" and kept_views > 0
            if bank and views == "augmented" and augmentation != "none":
                raise ValueError(
                    f"{key} is 'augmented', but prompts.kept_views = {kept_views} keeps features, "
                    f"and augmentation.name = {augmentation!r} shows the student another image in "
                    f"every step; set {key} to 'dihedral' or 'clean', augmentation.name to 'none', "
                    "or prompts.kept_views to 0"
                )
            if (
                (objective == "ekd" or bank)
                and views == "dihedral"
                and augmentation not in DIHEDRAL
            ):
                raise ValueError(
                    f"{key} is 'dihedral', but augmentation.name is {augmentation!r}, whose views "
                    f"are not the flips and quarter turns; set augmentation.name to "
                    f"{' or '.join(map(repr, DIHEDRAL))}, or {key} to 'augmented' or 'clean'"
                )

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
