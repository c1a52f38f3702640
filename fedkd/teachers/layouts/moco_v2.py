"""MoCo-v2: a self-supervised ResNet-50, from a file in the format of its authors."""

from pathlib import Path

import torchvision
from torch import nn

from fedkd.teachers.card import TeacherCard
from fedkd.teachers.checkpoints import Parts, load_strictly, log_missing_head, read_state

PREFIX = "encoder_q."
NUM_OUTPUTS = 128


def open_moco(card: TeacherCard, path: Path, input_size: int | None) -> Parts:
    """The query encoder of MoCo-v2 with its two-layer head, 2048 features.

    Args:
        card: Names the network, a ResNet of torchvision.
        path: Checkpoint with ``state_dict``, such as ``moco_v2_800ep_pretrain.pth.tar``; the
            momentum encoder and the queue beside it are not used.
        input_size: Side in px to which images are resized; None leaves them as they are.

    Raises:
        TeacherError: The file cannot be read, or other tensors are in it.
    Source: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR
    2020; Chen et al., "Improved Baselines with Momentum Contrastive Learning", 2020 (the head).
    """
    network = torchvision.models.get_model(card.architecture, weights=None)
    width = network.fc.in_features
    head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, NUM_OUTPUTS))
    state = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in read_state(path).items()
        if name.startswith(PREFIX)
    }
    has_head = any(name.startswith("fc.") for name in state)
    network.fc = head if has_head or not state else nn.Identity()
    load_strictly(network, state, path, card.architecture)
    network.fc = nn.Identity()
    if not has_head:
        log_missing_head(path)
    return Parts(network, head if has_head else None, width, input_size)
