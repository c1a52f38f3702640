"""The files of a checkpoint: tensors and a manifest, each with a hash that is checked."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, FiniteFloat, StringConstraints
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedkd import files

Groups = Mapping[str, Mapping[Any, Tensor | npt.NDArray[Any]]]
"""Tensors or arrays by group, and by name in it."""


_NAME = Annotated[str, StringConstraints(pattern=r"^(round|best)-[0-9]+\.safetensors$")]
"""Of a file in the folder itself, and not elsewhere."""


class _RowsTold(BaseModel, strict=True):
    bytes: int
    sha256: str


class _Best(BaseModel, strict=True):
    round: int
    val: dict[str, Any]


class _Manifest(BaseModel, strict=True):
    rows: _RowsTold
    files: dict[_NAME, str]
    names: dict[str, list[str]]
    clients: dict[str, int]
    best: _Best
    seconds: FiniteFloat
    where: str


MALFORMED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RecursionError,
    SafetensorError,
    TypeError,
    ValueError,
)
"""What is raised by reading what somebody made on purpose: hashes tell damage, not deceit."""


class Unusable(Exception):
    """A file of a checkpoint is missing, cut short or damaged; the text says which."""


def write_tensors(path: Path, groups: Groups) -> str:
    """Write safetensors, whole or not at all; returns the file's hash."""
    data = save(
        {
            f"{group}/{name}": _copy(value)
            for group, named in groups.items()
            for name, value in named.items()
        }
    )
    with files.replacing(path) as part:
        part.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def read_tensors(path: Path, expected: str) -> dict[str, dict[str, Tensor]]:
    """What was written, by group and name; in the order of the file, not of the writer.

    Raises:
        Unusable: The file has another hash.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load(read_checked(path, expected)).items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups


def read_checked(path: Path, expected: str, length: int | None = None) -> bytes:
    """The file, or so many bytes of it; Unusable if they have another hash."""
    data = _read(path)[:length]
    if hashlib.sha256(data).hexdigest() != expected:
        raise Unusable(f"{path.name} is cut short or damaged")
    return data


def manifest_path(folder: Path, round_number: int) -> Path:
    """Where the manifest after a round lies."""
    return folder / f"round-{round_number}.json"


def manifest_paths(folder: Path) -> dict[int, Path]:
    """All manifests by their rounds, the latest first."""
    found = (
        (re.fullmatch(r"round-(\d+)", path.stem), path) for path in folder.glob("round-*.json")
    )
    return dict(sorted(((int(match[1]), path) for match, path in found if match), reverse=True))


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest with its own hash; floats, NaN among them, are read back to the bit."""
    text = json.dumps({"sha256": _digest_of(manifest), "manifest": manifest})
    with files.replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest; Unusable if it is not what was written."""
    try:
        told = json.loads(_read(path))
        manifest: dict[str, Any] = told["manifest"]
        is_whole = told["sha256"] == _digest_of(manifest)
    except MALFORMED as error:
        raise Unusable(f"{path.name} cannot be read: {error}") from None
    if not is_whole or not isinstance(manifest, dict):
        raise Unusable(f"{path.name} is cut short or damaged")
    return manifest


def check_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Look whether it holds what a manifest of this format does, and names files beside it alone.

    Raises:
        Unusable: It does not; the text says where.
    """
    try:
        _Manifest.model_validate(manifest)
    except ValueError as error:
        told = " ".join(str(error).split())[:200]
        raise Unusable(f"{path.name} is not as it was written: {told}") from None


def _read(path: Path) -> bytes:
    if not path.is_file():  # reading a pipe would not end
        raise Unusable(f"{path.name} is missing, or no file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unusable(f"{path.name} cannot be read: {error}") from None


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def _copy(value: Tensor | npt.NDArray[Any]) -> Tensor:
    """Without gaps, and without sharing memory, which safetensors does not take."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return torch.from_numpy(np.array(value, copy=True, order="C"))
