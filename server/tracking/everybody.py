"""All who follow a run: the run directory, the recipe's trackers and the caller's observers."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from fedkd.experiment import Experiment
from fedkd.recipe import TrackerName
from server.results import Mode, RunDirectory, how_it_ended, identity
from server.scoreboard import Observer, Scoreboard
from server.tracking.tensorboard import TensorBoard

logger = logging.getLogger(__name__)

TRACKERS: dict[TrackerName, type[TensorBoard]] = {"tensorboard": TensorBoard}


def make_trackers(names: Sequence[TrackerName]) -> list[Observer]:
    """The trackers that a recipe names, each once; DependencyError if a package is missing."""
    return [TRACKERS[name]() for name in dict.fromkeys(names)]


class Everybody(Observer):
    """Tells several observers; as a context manager also of the start, and of a failure.

    The run directory comes first, so that its files of a round are there when the others hear of
    it, and its errors end the run. The others cannot: what one of them raises after the start is
    logged in one line, it is told no more, and the run goes on, as hours of training are worth more
    than a curve. At the start nothing is lost yet, and what is raised ends the run. So does
    ``KeyboardInterrupt``, whenever.

    Args:
        experiment: What is run.
        mode: How.
        results: The run directory; None if nothing is written.
        others: In the order in which they are told.
    """

    def __init__(
        self,
        experiment: Experiment,
        mode: Mode,
        results: RunDirectory | None,
        others: Sequence[Observer],
    ) -> None:
        self._experiment = experiment
        self._mode = mode
        self._results = results
        self._waiting = list(others)
        self._others: list[Observer] = []

    def __enter__(self) -> "Everybody":
        """Tell of the start; whoever has heard of it hears of a failure of the next one."""
        try:
            path = self._results.path if self._results else None
            self.run_started(self._experiment, path)
        except BaseException as error:
            self._tell_of_failure(error)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell of a failure."""
        if error is not None:
            self._tell_of_failure(error)

    def run_started(self, experiment: Experiment, path: Path | None) -> None:
        """See :class:`Observer`."""
        for observer in self._waiting:
            observer.run_started(experiment, path)
            self._others.append(observer)

    def run_resumed(self, board: Scoreboard) -> None:
        """See :class:`Observer`."""
        if self._results:
            self._results.run_resumed(board)
        self._tell("run_resumed", board)

    def round_started(self, round_number: int) -> None:
        """See :class:`Observer`."""
        self._tell("round_started", round_number)

    def client_progress(self, partition_id: int, what: str, done: int, total: int) -> None:
        """See :class:`Observer`."""
        self._tell("client_progress", partition_id, what, done, total)

    def round_finished(self, board: Scoreboard) -> None:
        """See :class:`Observer`."""
        if self._results:
            self._results.round_finished(board)
        self._tell("round_finished", board)

    def client_failed(self, board: Scoreboard) -> None:
        """See :class:`Observer`."""
        if self._results:
            self._results.client_failed(board)
        self._tell("client_failed", board)

    def run_ended(self, board: Scoreboard | None, summary: Mapping[str, Any]) -> None:
        """See :class:`Observer`."""
        self._tell("run_ended", board, summary)

    def _tell(self, method: str, *arguments: Any) -> None:
        for observer in list(self._others):
            try:
                getattr(observer, method)(*arguments)
            except Exception as error:  # of a stranger's code, which may raise anything
                self._others.remove(observer)
                logger.warning(
                    "observer %s failed in %s and is told no more; the run goes on: %s: %s",
                    type(observer).__name__,
                    method,
                    type(error).__name__,
                    " ".join(str(error).split()),
                )

    def _tell_of_failure(self, error: BaseException) -> None:
        summary = {**identity(self._experiment, self._mode), **how_it_ended(error)}
        self.run_ended(None, summary)
