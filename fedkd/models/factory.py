"""Students by name: architecture, initialisation and normalisation from the config."""

from collections.abc import Callable
from typing import Literal, NamedTuple
from urllib.error import URLError

import torch
import torchvision
from torch import nn

from fedkd import seeding
from fedkd.config import Section
from fedkd.errors import StudentError
from fedkd.models.small_resnet import SmallResNet, resnet8, resnet10
from fedkd.models.student import Student

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

StudentName = Literal["resnet8", "resnet10", "resnet18", "resnet50", "efficientnet_b0"]


class StudentConfig(Section):
    """The network that every hospital trains."""

    name: StudentName = "resnet8"
    """Architecture; resnet8 and resnet10 suit 28 to 64 px, the others 64 px and more."""
    init: Literal["random", "imagenet", "teacher"] = "random"
    """Where the backbone starts: seeded random weights, torchvision's ImageNet weights (read from
    torch's cache or downloaded), or the teacher's backbone, which must be the same architecture."""
    normalize: Literal["imagenet", "none"] = "imagenet"
    """Input normalisation of uint8 images: ImageNet's channel means and deviations, or pixels in
    [0, 1] as they are. Float images always reach the student as they are."""


class Architecture(NamedTuple):
    """A backbone that a student can have."""

    build: Callable[[], tuple[nn.Module, int]]
    description: str


def headless(network: nn.Module) -> tuple[nn.Module, nn.Linear]:
    """A torchvision classifier with its last linear layer taken out, and that layer."""
    for name in ("fc", "classifier", "heads", "head"):
        head = getattr(network, name, None)
        if isinstance(head, nn.Linear):
            setattr(network, name, nn.Identity())
            return network, head
        # What stands before the last layer (normalisation, flattening, dropout) stays.
        if isinstance(head, nn.Sequential) and isinstance(head[-1], nn.Linear):
            last = head[-1]
            head[-1] = nn.Identity()
            return network, last
    raise StudentError(
        f"{type(network).__name__} does not end in one linear layer; only torchvision "
        "classification models that do can serve as a backbone"
    )


def _small(build: Callable[[], SmallResNet]) -> Callable[[], tuple[nn.Module, int]]:
    def builder() -> tuple[nn.Module, int]:
        network = build()
        return network, network.num_features

    return builder


def _torchvision(name: str) -> Callable[[], tuple[nn.Module, int]]:
    def builder() -> tuple[nn.Module, int]:
        backbone, head = headless(torchvision.models.get_model(name, weights=None))
        return backbone, head.in_features

    return builder


STUDENTS: dict[str, Architecture] = {
    "resnet8": Architecture(_small(resnet8), "3 stages, 64 features, 0.08 M parameters; 28-64 px"),
    "resnet10": Architecture(
        _small(resnet10), "the default teacher's own network, 480 features, 1.2 M parameters"
    ),
    "resnet18": Architecture(_torchvision("resnet18"), "torchvision, 512 features, 11.2 M"),
    "resnet50": Architecture(_torchvision("resnet50"), "torchvision, 2048 features, 23.5 M"),
    "efficientnet_b0": Architecture(
        _torchvision("efficientnet_b0"), "torchvision, 1280 features, 4.0 M"
    ),
}


def build_student(
    config: StudentConfig,
    *,
    num_classes: int,
    num_teacher_features: int | None,
    seed: int,
    normalize: bool = True,
    teacher_backbone: nn.Module | None = None,
    contrastive: bool = False,
    momentum_contrast: bool = False,
    cosine: bool = False,
) -> Student:
    """A student with its initial weights; equal arguments give equal bits.

    Args:
        config: Architecture and initialisation.
        num_classes: Outputs of the classifiers.
        num_teacher_features: Width of the projector's output; None for a student without one.
        seed: The experiment's seed.
        normalize: False for float images, whose values reach the student as they are.
        teacher_backbone: Needed by ``init = "teacher"``.
        contrastive: With MOON's projector.
        momentum_contrast: With MoCo's head.
        cosine: With cosine classifiers.

    Raises:
        StudentError: Weights that cannot be had, or a teacher of another architecture.
    """
    with seeding.isolated(seed, "student"):
        backbone, num_features = STUDENTS[config.name].build()
        scaled = normalize and config.normalize == "imagenet"
        student = Student(
            backbone,
            num_features,
            num_classes,
            num_teacher_features,
            mean=IMAGENET_MEAN if scaled else (),
            std=IMAGENET_STD if scaled else (),
            contrastive=contrastive,
            momentum_contrast=momentum_contrast,
            cosine=cosine,
        )
    if config.init == "imagenet":
        _load_imagenet(backbone, config.name)
    elif config.init == "teacher":
        _load_from_teacher(backbone, teacher_backbone, config.name)
    return student


def _load_imagenet(backbone: nn.Module, name: str) -> None:
    if name in ("resnet8", "resnet10"):
        raise StudentError(
            f"student.init is 'imagenet' but {name} has no ImageNet weights; "
            "use resnet18, resnet50 or efficientnet_b0, or student.init = 'random'"
        )
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        state = weights.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise StudentError(
            f"cannot get {weights} for student.init = 'imagenet': {error}; offline, put the file "
            f"of {weights.url} into {torch.hub.get_dir()}/checkpoints"
        ) from error
    own = backbone.state_dict()
    backbone.load_state_dict({key: state[key] for key in own})


def _load_from_teacher(backbone: nn.Module, teacher: nn.Module | None, name: str) -> None:
    if teacher is None:
        raise StudentError("student.init is 'teacher' but no teacher is given")
    own, given = backbone.state_dict(), teacher.state_dict()
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in given.items()}:
        raise StudentError(
            f"student.init is 'teacher' but student {name} and the teacher's backbone "
            f"({type(teacher).__name__}) are different architectures; choose the same one"
        )
    backbone.load_state_dict(given)
