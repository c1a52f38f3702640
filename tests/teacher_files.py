"""Untrained checkpoints of every known teacher, in the layout of the authors' own files."""

import hashlib
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from fedkd import seeding
from fedkd.teachers.card import TeacherCard
from fedkd.teachers.config import OneTeacherConfig
from fedkd.teachers.zoo import CARDS

NAMES = [name for name in CARDS if name != "default"]
"""Teachers whose file this module can write."""
CLIP_KEYS = (
    ("patch_embed.proj", "conv1"),
    ("cls_token", "class_embedding"),
    ("pos_embed", "positional_embedding"),
    ("blocks.", "transformer.resblocks."),
    ("norm_pre", "ln_pre"),
    ("norm1", "ln_1"),
    ("norm2", "ln_2"),
    ("attn.qkv.", "attn.in_proj_"),
    ("attn.proj", "attn.out_proj"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
)
"""timm's names, in this order, and OpenAI's."""


def write_teacher_file(name: str, folder: Path) -> Path:
    """Write the file of a teacher as ``fedkd teachers fetch`` would place it below ``folder``.

    Full-size networks with seeded random weights, so hundreds of MB for some; a file that is there
    already is left as it is. Skips the test where timm is needed and not installed.
    """
    card = CARDS[name]
    path = folder / (card.download.path if card.download else f"{name}.pt")
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({key: t.contiguous() for key, t in state_of(card).items()}, path)
    elif card.layout == "moco_v2":
        # Older than torch's zip format.
        content = {"epoch": 800, "arch": "resnet50", "state_dict": state_of(card)}
        content["optimizer"] = {"state": {0: {"momentum_buffer": torch.zeros(3)}}}
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(state_of(card), path)
    return path


def settings(name: str, folder: Path, **values) -> OneTeacherConfig:
    """The config of a teacher whose file lies, or is now written, below ``folder``."""
    if name == "default":
        return OneTeacherConfig(**values)
    path = write_teacher_file(name, folder)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return OneTeacherConfig(**{"name": name, "checkpoint": str(path), "sha256": sha256, **values})


def state_of(card: TeacherCard) -> dict[str, torch.Tensor]:
    """The tensors of the authors' file, by their names."""
    with seeding.isolated(0, card.name):
        if card.layout == "timm":
            timm = pytest.importorskip("timm", reason="the extra timm is not installed")
            # Not resized: the authors' file has the positions of its own input size.
            state = timm.create_model(card.architecture, pretrained=False).state_dict()
            return {"dinov2": dinov2, "clip": clip}.get(card.name.split("_")[0], dict)(state)
        network = torchvision.models.get_model(card.architecture, weights=None)
        used(network)
        if card.layout == "radimagenet":
            return radimagenet(network)
        if card.layout == "moco_v2":
            return moco(network)
        return network.state_dict()


def used(network: nn.Module) -> None:
    """Give BatchNorm statistics that are not those of a folded or unused layer."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)


def moco(network: nn.Module) -> dict[str, torch.Tensor]:
    """Query encoder, another key encoder, and the queue."""
    network.fc = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 128))
    state = {f"module.encoder_q.{key}": tensor for key, tensor in network.state_dict().items()}
    state |= {key.replace("_q.", "_k."): torch.zeros_like(t) for key, t in state.items()}
    queue = {"module.queue": torch.zeros(128, 65536), "module.queue_ptr": torch.zeros(1).long()}
    return state | queue


def radimagenet(network: nn.Module) -> dict[str, torch.Tensor]:
    """The authors keep all but the last of resnet50's children in an nn.Sequential."""
    body = nn.ModuleDict({"backbone": nn.Sequential(*list(network.children())[:-1])})
    return body.state_dict()


def dinov2(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm has the authors' names; theirs has a token besides, which only pre-training uses."""
    return {"mask_token": torch.zeros(1, state["cls_token"].shape[-1]), **state}


def clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The whole model as OpenAI and open_clip name it: image tower, some of the text tower."""
    found = {
        "positional_embedding": torch.zeros(77, 512),
        "text_projection": torch.zeros(512, 512),
        "logit_scale": torch.zeros(()),
        "token_embedding.weight": torch.zeros(64, 512),
        "transformer.resblocks.0.ln_1.weight": torch.zeros(512),
        "ln_final.weight": torch.zeros(512),
    }
    for key, tensor in state.items():
        if key == "head.bias":
            continue
        if key == "head.weight":
            found["visual.proj"] = tensor.T.contiguous()
            continue
        theirs = key
        for ours, named in CLIP_KEYS:
            theirs = theirs.replace(ours, named)
        if theirs.startswith("norm."):
            theirs = theirs.replace("norm", "ln_post")
        alone = {"cls_token": tensor.shape[-1:], "pos_embed": tensor.shape[-2:]}
        found[f"visual.{theirs}"] = tensor.reshape(alone.get(key, tensor.shape))
    return found
