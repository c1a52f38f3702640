"""Files of weights: found, checked by their hash, read without running code, loaded strictly."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.errors import TeacherError
from fedkd.models.states import mismatches


def check_file(path: Path, sha256: str, key: str) -> None:
    """Refuse a missing file or one whose SHA-256 is not the expected one (TeacherError)."""
    if not path.is_file():
        raise TeacherError(
            f"{key} is {path}, but there is no such file; put it there or change the key"
        )
    if not sha256:
        return
    with path.open("rb") as file:
        seen = hashlib.file_digest(file, "sha256").hexdigest()
    if seen != sha256.lower():
        raise TeacherError(
            f"{path} has sha256 {seen}, expected {sha256.lower()}; the file is damaged or another "
            "one: get it again, or correct the expected hash"
        )


def read_state(path: Path) -> Mapping[str, Any]:
    """The state dict in a file, also beside an epoch, an optimiser and the like.

    Raises:
        TeacherError: The file holds no state dict, or more than tensors.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file
        raise TeacherError(
            f"cannot read the checkpoint {path}: {error}; it must be a plain state dict "
            "(tensors only: files with executable pickle content are refused)"
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise TeacherError(
            f"{path} holds no state dict of tensors; save model.state_dict() instead"
        )
    return state


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict, or raise a TeacherError that lists what does not fit."""
    if problems := mismatches(network.state_dict(), state):
        raise TeacherError(f"{path} does not fit {type(network).__name__}: {problems}")
    network.load_state_dict(dict(state))
