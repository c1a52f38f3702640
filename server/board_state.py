"""What a scoreboard holds, as JSON that is read back to the same bits."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from pydantic import TypeAdapter

from fedkd import files
from fedkd.metrics import Evaluation
from server.failures import Failure
from server.round_rows import Row
from server.scoreboard import Scoreboard

_LINE: TypeAdapter[Any] = TypeAdapter(
    tuple[list[dict[str, int | float]], list[dict[str, int | float | str]], list[Failure]]
)
"""What is new in each table; only names of clients are texts."""


class Rows:
    """The good beginning of a file of rows: a line for each checkpoint, with what is new in it.

    The file only grows, and its hash goes on from the last one: a run of many rounds writes each
    row once. JSON keeps floats to the bit, NaN, the order of columns, and integers as integers.
    """

    def __init__(self) -> None:
        self._bytes = 0
        self._hash = hashlib.sha256()
        # Of rounds, clients' rows and failures, how many are written.
        self._counts = (0, 0, 0)

    def append(self, path: Path, board: Scoreboard) -> "Rows":
        """Write what is new on the board; what lies beyond the good beginning is overwritten."""
        tables = (board.rounds, board.clients, [vars(failure) for failure in board.failures])
        new = [table[count:] for table, count in zip(tables, self._counts, strict=True)]
        data = json.dumps(new, default=_number).encode() + b"\n"
        files.append(path, data, self._bytes)
        grown = Rows()
        grown._bytes, grown._hash = self._bytes + len(data), self._hash.copy()
        grown._hash.update(data)
        grown._counts = (len(tables[0]), len(tables[1]), len(tables[2]))
        return grown

    def described(self) -> dict[str, Any]:
        """What tells the good beginning."""
        return {"bytes": self._bytes, "sha256": self._hash.hexdigest()}

    @staticmethod
    def read(data: bytes) -> "ReadRows":
        """All rows of a good beginning.

        Raises:
            ValueError, RecursionError: They are none.
        """
        read = ReadRows()
        for line in data.splitlines():
            rounds, clients, failures = json.loads(line)
            read.failures += _LINE.validate_python((rounds, clients, failures))[2]
            read.rounds += rounds
            read.clients += clients
        for row in read.clients:
            if any(isinstance(value, str) != (key == "client") for key, value in row.items()):
                raise ValueError("a row of a client has a text for a number")
        read.written._bytes = len(data)
        read.written._hash.update(data)
        read.written._counts = (len(read.rounds), len(read.clients), len(read.failures))
        return read


@dataclass
class ReadRows:
    """Rows that were read, and how far the file is written."""

    rounds: list[Row] = field(default_factory=list)
    clients: list[Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    written: Rows = field(default_factory=Rows)

    def put_into(self, board: Scoreboard) -> None:
        """Make them the board's."""
        board.rounds, board.clients, board.failures = self.rounds, self.clients, self.failures


def plain(scores: Evaluation | None) -> dict[str, Any]:
    """Scores as JSON can hold them, NaN included."""
    values: dict[str, Any] = json.loads(json.dumps(vars(scores), default=_number))
    return values


def evaluation(values: dict[str, Any]) -> Evaluation:
    """The scores again; if they are none, any of :data:`server.checkpoint_files.MALFORMED`."""
    for name, kind in get_type_hints(Evaluation).items():
        if kind in (int, float) and not isinstance(values[name], int | float):
            raise TypeError(f"{name} is no number")
    per_site = {
        name: np.array(rows, np.int64) for name, rows in values["confusion_per_site"].items()
    }
    confusion = np.array(values["confusion"], np.int64)
    return Evaluation(**{**values, "confusion": confusion, "confusion_per_site": per_site})


def _number(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no number")
