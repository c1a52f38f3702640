"""The sections ``teacher`` and ``teacher.by_client`` of a recipe."""

import difflib
import re
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from fedkd.config import Section
from fedkd.errors import ConfigError
from fedkd.teachers import zoo
from fedkd.teachers.card import Channels

InputSize = Literal["native", "as_is"] | int


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
    precision: Literal["full", "bfloat16", "float16"] = "full"
    """Floating-point type of the teacher's forward pass: that of training.dtype, or mixed precision
    (autocast), whose features are rounded."""
    views: Literal["augmented", "clean", "dihedral"] = "augmented"
    """Which image the target of ekd is made of. augmented: the one the student sees, computed every
    time. clean: the image without augmentation, computed once and kept; the student sees an
    augmented image and is asked for the features of the clean one, which is another method.
    dihedral: the student's flip and quarter turn of it, without any change of colours, computed
    once and kept for all 8."""
    reference: str = ""
    """Folder of natural images on which feature moments are measured, for Fourier prompts from a
    teacher without usable BatchNorm statistics; may hold ${VARIABLES}. It is searched with all that
    is in it, and must have 32 images at least. Empty means procedural images. Moments are measured
    once and kept with the teachers' files."""
    reference_images: int = Field(default=256, ge=32)
    """How many of them; of a folder with more, always the same choice."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not zoo.known(self.name):
            near = difflib.get_close_matches(self.name, zoo.TEACHERS, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(
                f"teacher.name is {self.name!r}; {hint}`fedkd teachers list` shows all names, "
                "besides timm:<model>, torchvision:<model> and pretrained"
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
        if isinstance(self.input_size, int) and self.input_size < 16:
            raise ValueError(f"teacher.input_size is {self.input_size}; it must be >= 16")
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
