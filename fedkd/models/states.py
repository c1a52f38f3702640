"""State dicts: how two of them differ, and the hash that identifies one."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

SHOWN = 10


def mismatches(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """What keeps ``given`` from being loaded into ``own``, in words; empty if it fits exactly.

    Lists how many names, kinds of numbers or shapes are wrong, and the first ten of them. Whole or
    complex numbers do not stand for fractions: int8 weights mean nothing without their scale.
    """
    problems = [f"missing {name}" for name in own if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in own]
    problems += [
        f"{name} is {given[name].dtype}, expected {tensor.dtype}"
        for name, tensor in own.items()
        if name in given and tensor.is_floating_point() and not given[name].is_floating_point()
    ]
    problems += [
        f"{name} has shape {tuple(given[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if not problems:
        return ""
    more = ", ..." if len(problems) > SHOWN else ""
    return f"{len(problems)} problem(s): {', '.join(problems[:SHOWN])}{more}"


def sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over sorted names, dtypes, shapes and bytes: equal only for equal bits."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
