"""Models of timm, such as DINOv2 and CLIP, with a local checkpoint."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.errors import TeacherError
from fedkd.teachers.card import TeacherCard
from fedkd.teachers.checkpoints import (
    Parts,
    first_line,
    load_strictly,
    log_missing_head,
    num_classes,
    read_state,
    try_out,
    without,
)
from fedkd.teachers.zoo import timm_module


def open_timm(card: TeacherCard, path: Path, input_size: int | None) -> Parts:
    """A model of timm with timm's pooling; its last layer is the head if the card has one.

    Args:
        card: Names the model, and says whether its last layer is kept (CLIP's projection).
        path: A state dict with timm's names or those of the authors that timm converts: DINOv2's,
            or CLIP's whole model as open_clip or OpenAI name it.
        input_size: Side in px to which images are resized, and to which timm resamples the
            position embeddings of a transformer. None: as they come, or for models of one fixed
            size the card's.

    Raises:
        DependencyError: timm is not installed.
        TeacherError: A file that does not fit.
    """
    facts = timm_module().get_pretrained_cfg(card.architecture)
    if facts.fixed_input_size:
        input_size = input_size or card.input_size or facts.input_size[-1]
    network: Any = build_timm(card, input_size)
    state = _converted(read_state(path), network, card.architecture, path)
    classifiers = facts.classifier
    names = classifiers if isinstance(classifiers, tuple) else (classifiers,)
    head = None
    if card.head == "none":
        state = without(state, tuple(_classifier(network, str(name)) for name in names), path)
    elif any(key.startswith(f"{names[0]}.") for key in state):
        network.reset_classifier(num_classes(state, names[0], 512))
        head = network.get_classifier()
    else:
        log_missing_head(path)
    load_strictly(network, state, path, card.architecture)
    if head is not None:
        network.set_submodule(names[0], nn.Identity())
    side = input_size or facts.input_size[-1]
    # timm's own num_features is another width where a head has several layers.
    num_features = try_out(network, torch.zeros(1, 3, side, side), card.name)
    return Parts(network, head, num_features, input_size)


def build_timm(card: TeacherCard, input_size: int | None) -> nn.Module:
    """The network without its classifier, with random weights; TeacherError for a size it refuses.

    Args:
        card: Names the network.
        input_size: Side in px, which a network of one fixed size is built for.
    """
    timm = timm_module()
    fixed = timm.get_pretrained_cfg(card.architecture).fixed_input_size
    options = {"img_size": input_size} if fixed else {}
    try:
        network: nn.Module = timm.create_model(
            card.architecture, pretrained=False, num_classes=0, **options
        )
    except Exception as error:  # each network has its own way to fail
        raise TeacherError(
            f"the teacher {card.name} cannot be built for images of {input_size} px "
            f"({first_line(error)}); set teacher.input_size to a side that it takes, such as "
            f"{card.input_size}"
        ) from error
    return network


def _classifier(network: nn.Module, name: str) -> str:
    """What names of a classifier's tensors begin with: LeViT's head has a BatchNorm before it."""
    parent = name.rpartition(".")[0]
    own = any(key.startswith(f"{parent}.") for key in network.state_dict())
    return f"{name if own or not parent else parent}."


def _converted(
    state: dict[str, Tensor], network: nn.Module, architecture: str, path: Path
) -> dict[str, Tensor]:
    """The state dict with timm's names, by the model family's own conversion if it has one."""
    family = import_module(timm_module().models.model_entrypoint(architecture).__module__)
    convert = getattr(family, "checkpoint_filter_fn", lambda given, _: given)
    try:
        return dict(convert(state, network))
    except Exception as error:  # a file of another model can upset it in any way
        raise TeacherError(
            f"{path} does not fit {architecture}: timm cannot convert its names ({error}); it "
            "must be a checkpoint of this very model"
        ) from error
