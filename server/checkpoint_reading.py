"""A checkpoint that is read: what its files hold, if they are as they were written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
from torch import Tensor

from fedkd.metrics import Evaluation
from server import board_state
from server.checkpoint_files import read_checked, read_tensors
from server.evaluation import Arrays
from server.scoreboard import student_arrays

ROWS = "rows.jsonl"
ARRAYS, STRATEGY, OWN, BEST, BEST_OWN = "arrays", "strategy", "own", "best", "best-own"
"""Groups of tensors."""


@dataclass(frozen=True)
class ReadCheckpoint:
    """What a manifest and the files that it names hold."""

    rows: board_state.ReadRows
    arrays: dict[str, Tensor]
    best: dict[str, Tensor]
    strategy: dict[str, npt.NDArray[Any]]
    own: dict[int, npt.NDArray[Any]]
    best_own: dict[int, npt.NDArray[Any]]
    best_round: int
    best_val: Evaluation
    seconds: float

    @classmethod
    def of(
        cls, folder: Path, number: int, manifest: Mapping[str, Any], initial: Arrays
    ) -> "ReadCheckpoint":
        """Read them; any of MALFORMED if they are not what was written."""
        groups: dict[str, dict[str, Tensor]] = {}
        for name, expected in manifest["files"].items():
            groups |= read_tensors(folder / name, expected)
        told, best = manifest["rows"], manifest["best"]
        rows = board_state.Rows.read(read_checked(folder / ROWS, told["sha256"], told["bytes"]))
        rounds = [row["round"] for row in rows.rounds]
        if len(rounds) != number or rounds != list(range(1, number + 1)):
            raise ValueError(f"{ROWS} has other rounds")
        own, best_own = (
            {int(client): t.numpy() for client, t in groups.get(group, {}).items()}
            for group in (OWN, BEST_OWN)
        )
        return cls(
            rows=rows,
            arrays=_like(initial, groups.get(ARRAYS, {}), manifest["names"][ARRAYS]),
            best=_like(student_arrays(initial), groups.get(BEST, {}), manifest["names"][BEST]),
            strategy={name: t.numpy() for name, t in groups.get(STRATEGY, {}).items()},
            own=own,
            best_own=best_own,
            best_round=range(number + 1)[best["round"]],
            best_val=board_state.evaluation(best["val"]),
            seconds=float(manifest["seconds"]),
        )


def _like(initial: Arrays, tensors: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """The tensors in their order, if names, shapes and dtypes are those of the initial ones."""
    if sorted(names) != sorted(initial):
        raise ValueError("its names are not those of what travels")
    for name in {*initial, *tensors}:
        expected, found = initial[name], tensors[name]
        if (found.dtype, found.shape) != (expected.dtype, expected.shape):
            raise ValueError(f"{name} is {found.dtype} {tuple(found.shape)}")
    return {name: tensors[name] for name in names}
