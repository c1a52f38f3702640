"""Models of timm, such as DINOv2 and CLIP, with a local checkpoint."""

from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from fedkd.errors import TeacherError
from fedkd.teachers.card import TeacherCard
from fedkd.teachers.checkpoints import (
    Parts,
    load_strictly,
    log_missing_head,
    num_classes,
    read_state,
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
    timm = timm_module()
    facts = timm.get_pretrained_cfg(card.architecture)
    options = {}
    if facts.fixed_input_size:
        input_size = input_size or card.input_size or facts.input_size[-1]
        options["img_size"] = input_size
    network = timm.create_model(card.architecture, pretrained=False, num_classes=0, **options)
    state = _converted(read_state(path), network, card.architecture, path)
    classifiers = facts.classifier
    names = classifiers if isinstance(classifiers, tuple) else (classifiers,)
    head = None
    if card.head == "none":
        state = without(state, tuple(f"{name}." for name in names), path)
    elif any(key.startswith(f"{names[0]}.") for key in state):
        network.reset_classifier(num_classes(state, names[0], 512))
        head = network.get_classifier()
    else:
        log_missing_head(path)
    load_strictly(network, state, path, card.architecture)
    if head is not None:
        network.set_submodule(names[0], nn.Identity())
    side = input_size or facts.input_size[-1]
    with torch.no_grad():  # timm's num_features is another width where a head has several layers
        num_features = network.eval()(torch.zeros(1, 3, side, side)).shape[1]
    return Parts(network, head, num_features, input_size)


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
