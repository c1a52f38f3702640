"""Files of teachers that fedkd makes: safetensors with what is needed to open them, and a card."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fedkd import files, seeding
from fedkd.errors import TeacherError
from fedkd.fetching import hash_file
from fedkd.models.factory import STUDENTS, StudentName
from fedkd.teachers.card import Channels
from fedkd.teachers.checkpoints import load_strictly, read_state

FORMAT = "fedkd-teacher-1"
HeadName = Literal["batchnorm", "plain"]
"""batchnorm: Linear, BatchNorm, ReLU, Linear (SimCLR). plain: Linear, ReLU, Linear (MoCo v2)."""


@dataclass(frozen=True)
class StoredTeacher:
    """A backbone with its contrastive head, as they are written to a file and read from it.

    Attributes:
        architecture: Name of the backbone among the students.
        backbone: Maps normalised images to features.
        num_features: Width of the features.
        head: Maps the last of the features, as many as its first layer takes, to embeddings.
        mean: Channel means of the input normalisation.
        std: Channel deviations.
    """

    architecture: StudentName
    backbone: nn.Module
    num_features: int
    head: nn.Sequential
    mean: Channels
    std: Channels


def build_head(kind: HeadName, num_features: int, num_hidden: int, num_outputs: int) -> nn.Module:
    """A contrastive head, from (batch, num_features) to (batch, num_outputs)."""
    if kind == "batchnorm":
        return nn.Sequential(
            nn.Linear(num_features, num_hidden),
            nn.BatchNorm1d(num_hidden),
            nn.ReLU(),
            nn.Linear(num_hidden, num_outputs),
        )
    return nn.Sequential(
        nn.Linear(num_features, num_hidden), nn.ReLU(), nn.Linear(num_hidden, num_outputs)
    )


def round_weights(*networks: nn.Module) -> None:
    """Round all weights but BatchNorm's to what float16 can hold, in place."""
    for network in networks:
        for parameter in _rounded(network):
            parameter.data = parameter.data.half().float()


def write_teacher(
    path: Path,
    teacher: StoredTeacher,
    metadata: Mapping[str, str],
    card: Mapping[str, Any],
    *,
    half: bool = True,
) -> None:
    """Write the weights, and beside them a card under the same name with the ending ``.json``.

    Weights are stored as float16, BatchNorm tensors as float32: round them first
    (:func:`round_weights`), so that what was measured is what is stored.

    Args:
        path: Of the weights; its folder is made.
        teacher: What is stored.
        metadata: Further texts to keep in the file.
        card: What the card says; size and hash are added.
        half: False stores all weights as float32, unrounded.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    networks = (("backbone.", teacher.backbone), ("projector.", teacher.head))
    halves = {id(parameter) for _, network in networks for parameter in _rounded(network) if half}
    tensors = {
        prefix + name: (tensor.half() if id(tensor) in halves else tensor).detach().contiguous()
        for prefix, network in networks
        for name, tensor in network.state_dict(keep_vars=True).items()
    }
    linear = [m for m in teacher.head.modules() if isinstance(m, nn.Linear)]
    own = {
        "format": FORMAT,
        "architecture": teacher.architecture,
        "projector": json.dumps([linear[0].out_features, linear[-1].out_features]),
        "mean": json.dumps(teacher.mean),
        "std": json.dumps(teacher.std),
    }
    with files.replacing(path) as part:
        part.write_bytes(_file_bytes(tensors, {**metadata, **own}))
    measured = {"size_bytes": path.stat().st_size, "sha256": hash_file(path)}
    with files.replacing(path.with_suffix(".json")) as part:
        part.write_text(json.dumps({**card, **measured}, indent=2) + "\n", encoding="utf-8")


def read_card(path: Path) -> dict[str, Any]:
    """The card beside a teacher's weights.

    Raises:
        TeacherError: It cannot be read, or is no table.
    """
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TeacherError(f"cannot read the card {path}: {error}") from None
    if not isinstance(card, dict):
        raise TeacherError(f"cannot read the card {path}: it must be a table of names and values")
    return card


def load_pretrained(path: Path) -> StoredTeacher:
    """A stored teacher, float32, in eval mode.

    Raises:
        TeacherError: Not such a file, or keys that do not fit.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except Exception as error:  # safetensors raises its own kind, and OSError
        raise TeacherError(f"cannot read the teacher {path}: {error}") from error
    if metadata.get("format") != FORMAT:
        raise TeacherError(
            f"{path} is not a teacher that `fedkd pretrain` wrote (format "
            f"{metadata.get('format')!r}, expected {FORMAT!r})"
        )
    state = read_state(path)
    kind: HeadName = "batchnorm" if "projector.1.running_mean" in state else "plain"
    try:
        architecture = cast(StudentName, metadata["architecture"])
        hidden, outputs = json.loads(metadata["projector"])
        mean, std = (_channels(json.loads(metadata[key])) for key in ("mean", "std"))
        if min(std) <= 0:
            raise ValueError(f"std is {std}")
        with seeding.isolated(0, "load"):
            backbone, num_features = STUDENTS[architecture].build()
            head = build_head(kind, state["projector.0.weight"].shape[1], hidden, outputs)
    except (LookupError, ValueError, TypeError, RuntimeError) as error:
        raise TeacherError(
            f"cannot read the teacher {path}: its header is damaged or of another version of fedkd "
            f"({error!r}); make it again with `fedkd pretrain`"
        ) from error
    both = nn.ModuleDict({"backbone": backbone, "projector": head})
    load_strictly(both, state, path, architecture)
    return StoredTeacher(
        architecture, backbone.eval(), num_features, cast(nn.Sequential, head.eval()), mean, std
    )


def _channels(values: Sequence[float]) -> Channels:
    red, green, blue = map(float, values)
    if not all(map(math.isfinite, (red, green, blue))):
        raise ValueError(f"{values} for the channels")
    return red, green, blue


def _rounded(network: nn.Module) -> list[nn.Parameter]:
    """Parameters that are stored as float16."""
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return [parameter for layer in layers for parameter in layer.parameters()]


def _file_bytes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file with sorted metadata; safetensors' own order changes from call to call."""
    content = save(tensors, metadata)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]
