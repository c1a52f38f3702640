"""Training of one cell of a comparison, and what is left of one that fails."""

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import torch

from fedkd import files
from fedkd.errors import FedkdError
from fedkd.experiment import open_experiment
from server.comparison.plan import Cell
from server.interrupted_run import open_interrupted, unfinished_run
from server.scoreboard import Observer, Scoreboard
from server.simulation import run

_TICK_S = 0.5


class Watch(Protocol):
    """Somebody who is told how the cells go."""

    def started(self, cell: Cell) -> None:
        """A cell begins, by opening its data."""

    def round_finished(self, cell: Cell, number: int) -> None:
        """So many rounds of a cell are done."""

    def ended(self, cell: Cell, error: str, score: float) -> None:
        """A cell failed (one line), or finished ("") with this test balanced accuracy."""

    def tick(self) -> None:
        """Time goes by; called at least every second or so while anything is computed."""


def train(cell: Cell, folder: Path, watch: Watch) -> None:
    """Run one cell in this process; any exception but an interruption becomes its error.

    A run of it that was interrupted goes on.
    """
    watch.started(cell)
    error_file(cell, folder).unlink(missing_ok=True)
    try:
        # Opening computes as well (a teacher's moments), and is to give the same bits everywhere.
        with _threads(cell.recipe.engine.num_threads):
            begun = unfinished_run(cell.recipe, cell.mode, folder)
            interrupted = open_interrupted(begun, recipe=cell.recipe) if begun else None
            result = run(
                interrupted.experiment() if interrupted else open_experiment(cell.recipe),
                centralized=cell.mode == "centralized",
                output=folder,
                observers=[_Teller(cell, watch)],
                interrupted=interrupted,
            )
    except Exception as error:  # whatever it is, the other cells go on
        line, details = _described(error)
        note_failure(cell, folder, line, details)
        watch.ended(cell, line, float("nan"))
    else:
        watch.ended(cell, "", result.summary["test"]["balanced_accuracy"])


def error_file(cell: Cell, folder: Path) -> Path:
    """Where the error of a failed cell is: one line, and what more there is to say.

    Named by the recipe's hash, as another recipe may have had the folder before.
    """
    return folder / cell.recipe.name / f"error-{cell.key[0][:8]}.txt"


def note_failure(cell: Cell, folder: Path, line: str, details: str = "") -> None:
    """Write a cell's error into its folder."""
    path = error_file(cell, folder)
    with suppress(OSError):  # a folder that cannot be written may be the very error
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as part:
            part.write_text("\n\n".join(filter(None, [line, details])) + "\n", encoding="utf-8")


def _described(error: Exception) -> tuple[str, str]:
    """An error in one line; and all of it, if that is more."""
    if isinstance(error, FedkdError):
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if len(lines) < 2:
            return "".join(lines), ""
        # Of a client's traceback the first line names the client and the last one the error.
        return f"{lines[0]} ... {lines[-1]}", str(error)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text, "".join(traceback.format_exception(error))


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Teller(Observer):
    """Observer of a run that passes on what a comparison shows."""

    def __init__(self, cell: Cell, watch: Watch) -> None:
        self._cell, self._watch, self._spoke = cell, watch, 0.0

    def client_progress(self, partition_id: int, what: str, done: int, total: int) -> None:
        if time.monotonic() - self._spoke > _TICK_S:
            self._spoke = time.monotonic()
            self._watch.tick()

    def round_finished(self, board: Scoreboard) -> None:
        self._watch.round_finished(self._cell, len(board.rounds))
