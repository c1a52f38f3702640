"""Files of feature moments: what they were measured with, and a hash that shows damage."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save

from fedkd import files
from fedkd.errors import TeacherError
from fedkd.models import states
from fedkd.teachers.moments import Moments

FORMAT = "fedkd-moments-1"


def digest_of(settings: Mapping[str, Any]) -> str:
    """SHA-256, hexadecimal, of plain values under names, in whatever order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def write_moments(path: Path, moments: Mapping[str, Moments], settings: Mapping[str, Any]) -> None:
    """Write moments, whole or not at all, with what they were measured with.

    Args:
        path: A safetensors file; its folder is made.
        moments: By module name; their order is kept, as sums over layers hang on it.
        settings: Plain values under names.

    Raises:
        OSError: The folder or the disk.
    """
    layers = list(moments)
    tensors = {
        f"{name}.{part}": value.detach().cpu().contiguous()
        for name, one in moments.items()
        for part, value in one._asdict().items()
    }
    metadata = {
        "format": FORMAT,
        "settings": json.dumps(settings, sort_keys=True),
        "layers": json.dumps(layers),
    }
    content = digest_of({**metadata, "tensors": states.sha256(tensors)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as part:  # written here, as safetensors shuts all others out
        part.write_bytes(save(tensors, {**metadata, "sha256": content}))


def read_moments(path: Path, settings: Mapping[str, Any]) -> dict[str, Moments]:
    """The moments in a file, to the bit as they were measured, on the CPU.

    Args:
        path: As :func:`write_moments` was given it.
        settings: The same.

    Raises:
        TeacherError: A damaged file, or one that was measured with something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises its own kind, and OSError
        raise TeacherError(f"cannot read the feature moments {path}: {error}") from error
    expected = metadata.pop("sha256", None)
    if expected != digest_of({**metadata, "tensors": states.sha256(tensors)}):
        raise TeacherError(f"the feature moments {path} are damaged: their sha256 is another one")
    if metadata["settings"] != json.dumps(settings, sort_keys=True):
        raise TeacherError(f"the feature moments {path} were measured with other settings")
    layers = json.loads(metadata["layers"])
    return {name: Moments(tensors[f"{name}.mean"], tensors[f"{name}.var"]) for name in layers}
