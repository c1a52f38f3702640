"""What a round says in numbers, under the names that trackers show."""

import math
import re
from collections.abc import Mapping
from typing import Any

from server.scoreboard import Scoreboard

_GROUPS = {"train_": "train", "val_": "val", "own_val_": "own_val"}
_OF_ROUND = ("num_clients", "num_failed", "num_seen", "seconds")
_NO_NUMBERS = ("round", "partition_id", "client")


def scalars(board: Scoreboard) -> dict[str, float]:
    """Every number of the last round's row and of its clients' rows, by tag.

    Tags are ``train/loss``, ``val/balanced_accuracy``, ``own_val/mcc``, ``traffic/bytes_up``,
    ``round/seconds`` and so on; what clients say of their own (learning rate, prior of the prompts)
    is in ``train``, as a mean over them. Their own values are ``client_loss/<name>``, by quantity
    so that hospitals lie side by side. Tags have letters, digits and ``_ . - /`` only, which every
    tracker takes: other characters of a client's name become ``_``, and where two names become one
    each gets its number in front. What is not finite is left out.

    Args:
        board: With at least one round.
    """
    row = board.rounds[-1]
    values = {_tag(name): value for name, value in row.items() if name not in _NO_NUMBERS}
    names = _client_names(board)
    for own in board.clients:
        if own["round"] == row["round"]:
            client = names[own["partition_id"]]
            values.update(
                {f"client_{n}/{client}": v for n, v in own.items() if n not in _NO_NUMBERS}
            )
    return {tag: float(value) for tag, value in values.items() if math.isfinite(value)}


def final_scalars(board: Scoreboard) -> dict[str, float]:
    """The numbers of the test split, ``test/balanced_accuracy`` and so on, of a finished board."""
    assert board.test is not None, "the run is not finished"
    found = board.test.scalars().items()
    return {f"test/{name}": value for name, value in found if math.isfinite(value)}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keys of nested tables joined by dots, as a recipe's keys are written."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found


def _tag(name: str) -> str:
    for prefix, group in _GROUPS.items():
        if name.startswith(prefix):
            return f"{group}/{name.removeprefix(prefix)}"
    if name.startswith("bytes_"):
        return f"traffic/{name}"
    return f"{'round' if name in _OF_ROUND else 'train'}/{name}"


def _client_names(board: Scoreboard) -> list[str]:
    names = [re.sub(r"[^\w.-]+", "_", n, flags=re.ASCII) for n in
             board.experiment.partition.client_names]  # fmt: skip
    if len(set(names)) == len(names):
        return names
    return [f"{number}-{name}" for number, name in enumerate(names)]
