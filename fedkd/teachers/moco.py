"""MoCo-v2: a self-supervised ResNet-50, from a file in the format of its authors."""

from collections.abc import Sequence
from pathlib import Path

import torchvision
from torch import nn

from fedkd.teachers.checkpoints import load_strictly, read_state
from fedkd.teachers.frozen import Teacher

PREFIX = "module.encoder_q."
NUM_OUTPUTS = 128


def open_moco(
    path: Path, mean: Sequence[float], std: Sequence[float], input_size: int | None
) -> Teacher:
    """The query encoder of MoCo-v2 with its two-layer head, 2048 features.

    Args:
        path: Checkpoint with ``state_dict``, such as ``moco_v2_800ep_pretrain.pth.tar``.
        mean: Channel means of the input normalisation.
        std: Channel deviations.
        input_size: Side in px to which images are resized; None leaves them as they are.

    Raises:
        TeacherError: The file cannot be read, or other tensors are in it.
    Source: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR
    2020; Chen et al., "Improved Baselines with Momentum Contrastive Learning", 2020 (the head).
    """
    network = torchvision.models.resnet50(weights=None)
    width = network.fc.in_features
    head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, NUM_OUTPUTS))
    network.fc = head
    # The file may also hold the momentum encoder and the queue.
    state = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in read_state(path).items()
        if name.startswith(PREFIX)
    }
    load_strictly(network, state, path)
    network.fc = nn.Identity()
    return Teacher(
        "moco_v2",
        network,
        num_features=width,
        mean=mean,
        std=std,
        input_size=input_size,
        head=head,
        head_kind="contrastive",
    )
