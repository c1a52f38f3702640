"""Classifiers of torchvision, with a local checkpoint."""

from pathlib import Path

import torch
import torchvision
from torch import nn

from fedkd.errors import StudentError, TeacherError
from fedkd.models.factory import headless
from fedkd.teachers.card import TeacherCard
from fedkd.teachers.checkpoints import (
    Parts,
    load_strictly,
    log_missing_head,
    num_classes,
    read_state,
    try_out,
)


def open_torchvision(card: TeacherCard, path: Path, input_size: int | None) -> Parts:
    """A classifier with its last linear layer as head, of as many classes as the file has.

    Args:
        card: Names the network.
        path: A state dict with torchvision's names; the last layer may be absent.
        input_size: Side in px to which images are resized; None leaves them as they are.

    Raises:
        TeacherError: A file that does not fit, or a network that does not end in a linear layer.
    """
    network = torchvision.models.get_model(card.architecture, weights=None)
    names = {module: name for name, module in network.named_modules()}
    try:
        backbone, head = headless(network)
    except StudentError as error:
        raise TeacherError(f"teacher.name is {card.name!r}: {error}") from None
    if input_size:
        try_out(backbone, torch.zeros(1, 3, input_size, input_size), card.name)
    state = read_state(path)
    name, width = names[head], head.in_features
    if not any(key.startswith(f"{name}.") for key in state):
        load_strictly(backbone, state, path, card.architecture)
        log_missing_head(path)
        return Parts(backbone, None, width, input_size)
    head = nn.Linear(width, num_classes(state, name, head.out_features))
    network.set_submodule(name, head)
    load_strictly(network, state, path, card.architecture)
    network.set_submodule(name, nn.Identity())
    return Parts(backbone, head, width, input_size)
