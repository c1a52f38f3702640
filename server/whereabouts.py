"""How far a run was when it was interrupted, and how to go on, for the last line of a command."""

import shlex
from pathlib import Path
from types import TracebackType
from typing import Self

from fedkd.experiment import Experiment
from server.checkpoint import FOLDER
from server.scoreboard import Observer


class Whereabouts(Observer):
    """Observer that adds a note to the ``KeyboardInterrupt`` that ends its block: where, what next.

    The note is ``in round 7; go on with: fedkd resume RUN``, without its second half where nothing
    is left to go on from (no run directory, ``checkpoint.every = 0``); none before a run starts.
    """

    def __init__(self) -> None:
        self._round = 0
        self._run: Path | None = None

    def __enter__(self) -> Self:
        """Nothing has begun."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Say so, if it was interrupted."""
        where = [f"in round {self._round}"] if self._round else []
        if self._run is not None:
            where.append(f"go on with: fedkd resume {shlex.quote(str(self._run))}")
        if isinstance(error, KeyboardInterrupt) and where:
            error.add_note("; ".join(where))

    def run_started(self, experiment: Experiment, path: Path | None) -> None:
        """Remember the run directory, if it can be resumed."""
        self._run = path if path and (path / FOLDER).is_dir() else None

    def round_started(self, round_number: int) -> None:
        """Remember the round."""
        self._round = round_number
