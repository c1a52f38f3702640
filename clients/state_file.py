"""What a client remembers, as a file that is read back bit for bit."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedkd import files
from fedkd.models import states

State = dict[str, dict[str, Tensor]]
"""What a client remembers: a name for each part, and its tensors. Empty before its first round."""

TRAINED_IN = "trained-in"
"""A part of what a client remembers: under the key ``round``, the client's last round."""

_LAYOUT, _NOTES, _SHA256 = "layout", "notes", "sha256"

UNREADABLE = (OSError, SafetensorError)
"""What reading raises."""


def write_state(
    state: State, path: Path, flush: bool = True, notes: Mapping[str, int | float | str] = {}
) -> None:
    """Write a state as safetensors, whole or not at all.

    Args:
        state: Any dtypes and shapes, 0-dimensional and empty tensors and empty parts as well.
        path: Its folder must be there; a file that is there is replaced.
        flush: See :func:`fedkd.files.replacing`. The file then has a checksum, too.
        notes: What else is to be known of it.

    Raises:
        OSError, safetensors.SafetensorError: It cannot be written: no room, no folder.
    """
    # Copies, as safetensors takes neither tensors that share memory nor such with gaps.
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().clone().contiguous()
        for part, named in state.items()
        for name, tensor in named.items()
    }
    # Parts without a tensor, the order, and where tensors were, which safetensors does not keep.
    layout = {
        part: {name: str(tensor.device) for name, tensor in named.items()}
        for part, named in state.items()
    }
    words = {_LAYOUT: json.dumps(layout), _NOTES: json.dumps(dict(notes))}
    words[_SHA256] = _sha256(tensors, words) if flush else ""
    with files.replacing(path, flush) as unfinished:
        save_file(tensors, unfinished, words)


def read_state(path: Path) -> State:
    """The state that :func:`write_state` wrote: names in their order, dtypes, shapes and bits.

    Tensors are contiguous whatever they were, and on the device where they were, or on the CPU if
    there is no GPU any more.

    Raises:
        OSError, safetensors.SafetensorError: It cannot be read, or is not what was written.
    """
    with _opened(path) as file:
        words = _words(file.metadata(), path)
        # Copies: what is read lies in a mapped file, which would stay as long as any tensor of it.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    if words[_SHA256] and words[_SHA256] != _sha256(tensors, words):
        raise SafetensorError(f"{path} is damaged: its checksum is not that of what it holds")
    has_gpu = torch.cuda.is_available()
    try:
        layout: dict[str, dict[str, str]] = json.loads(words[_LAYOUT])
        return {
            part: {
                name: tensors[f"{part}/{name}"].to(device if has_gpu else "cpu")
                for name, device in devices.items()
            }
            for part, devices in layout.items()
        }
    except (AttributeError, KeyError, RecursionError, RuntimeError, ValueError) as error:
        raise SafetensorError(f"{path} is damaged: its layout is {error}") from None


def _opened(path: Path) -> Any:
    if files.is_special(path):  # reading a pipe would not end
        raise OSError(f"{path} is no file")
    return safe_open(path, framework="pt")


def read_notes(path: Path) -> dict[str, int | float | str]:
    """The notes, without the tensors; whether these are whole is not known yet.

    Raises:
        OSError, safetensors.SafetensorError: They cannot be read.
    """
    with _opened(path) as file:
        words = _words(file.metadata(), path)
    try:
        notes: dict[str, int | float | str] = json.loads(words[_NOTES])
    except (RecursionError, ValueError):
        raise SafetensorError(f"{path} is damaged: its notes cannot be read") from None
    return notes


def _words(metadata: dict[str, str] | None, path: Path) -> dict[str, str]:
    for name in (_LAYOUT, _NOTES, _SHA256):
        if name not in (metadata or {}):
            raise SafetensorError(f"{path} is damaged: it has no {name}")
    return dict(metadata or {})


def _sha256(tensors: Mapping[str, Tensor], words: Mapping[str, str]) -> str:
    text = json.dumps([states.sha256(tensors), words[_LAYOUT], words[_NOTES]])
    return hashlib.sha256(text.encode()).hexdigest()
