"""Models of timm, such as DINOv2, with a local checkpoint."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fedkd.teachers.checkpoints import load_strictly, read_state
from fedkd.teachers.frozen import Teacher
from fedkd.teachers.zoo import timm_module


def open_timm(name: str, architecture: str, path: Path, input_size: int | None) -> Teacher:
    """A model of timm without its head, with timm's input normalisation and pooling.

    Args:
        name: The teacher's, for messages.
        architecture: timm's name of the model, such as ``vit_small_patch14_dinov2``.
        path: A state dict with timm's names or, for vision transformers, the authors'.
        input_size: Side in px to which images are resized, and to which timm resamples the
            position embeddings of a transformer. None: as they come, or the size that the
            transformer was pre-trained with.

    Raises:
        DependencyError: timm is not installed.
        TeacherError: A file that does not fit.
    """
    timm = timm_module()
    card = timm.get_pretrained_cfg(architecture)
    options = {}
    if card.fixed_input_size:
        input_size = input_size or card.input_size[-1]
        options["img_size"] = input_size
    network = timm.create_model(architecture, pretrained=False, num_classes=0, **options)
    state = dict(read_state(path))
    vision_transformer: Any = import_module("timm.models.vision_transformer")
    if isinstance(network, vision_transformer.VisionTransformer):
        state = vision_transformer.checkpoint_filter_fn(state, network)
    classifiers = card.classifier if isinstance(card.classifier, tuple) else (card.classifier,)
    heads = tuple(f"{name}." for name in classifiers)
    load_strictly(network, {k: v for k, v in state.items() if not k.startswith(heads)}, path)
    side = input_size or card.input_size[-1]
    with torch.no_grad():  # timm's num_features is another width where a head has several layers
        num_features = network.eval()(torch.zeros(1, 3, side, side)).shape[1]
    return Teacher(
        name,
        network,
        num_features=num_features,
        mean=card.mean,
        std=card.std,
        input_size=input_size,
        head=None,
        head_kind="none",
    )
