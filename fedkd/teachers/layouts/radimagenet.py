"""RadImageNet: a ResNet-50 of radiological images, from a file in the format of its authors."""

from pathlib import Path

import torchvision
from torch import nn

from fedkd.teachers.card import TeacherCard
from fedkd.teachers.checkpoints import Parts, load_strictly, read_state, without


def open_radimagenet(card: TeacherCard, path: Path, input_size: int | None) -> Parts:
    """The backbone, 2048 features; its file has no head.

    The authors number the children of torchvision's ResNet-50, all but the last, in an
    ``nn.Sequential``: ``backbone.0.weight`` is ``conv1.weight``, ``backbone.4`` is ``layer1``.
    Files with torchvision's own names are read as well.

    Args:
        card: Names the network, a ResNet of torchvision.
        path: A state dict.
        input_size: Side in px to which images are resized; None leaves them as they are.

    Raises:
        TeacherError: The file cannot be read, or other tensors are in it.
    Source: the example of https://github.com/BMEII-AI/RadImageNet.
    """
    network = torchvision.models.get_model(card.architecture, weights=None)
    width = network.fc.in_features
    network.fc = nn.Identity()
    children = {str(i): name for i, (name, _) in enumerate(network.named_children())}
    state = {}
    for name, tensor in read_state(path).items():
        child, dot, rest = name.partition(".")
        state[children.get(child, child) + dot + rest] = tensor
    load_strictly(network, without(state, ("fc.",), path), path, card.architecture)
    return Parts(network, None, width, input_size)
