"""A client in the middle of its training: written, so that it can go on with the same bits."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from clients.objective import Objective, OnStep
from clients.state_file import UNREADABLE, State, read_notes, read_state, write_state
from clients.state_folder import warn_once
from fedkd.models.student import Student
from fedkd.training import Running, load_optimizer_state, optimizer_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """All that a step changes, but for what is drawn anew from the number of the step.

    Attributes:
        student: In training, with the generator of its dropout.
        optimizer: Over its parameters.
        objective: After ``start_round``.
        running: Sums over the steps that are done.
    """

    student: Student
    optimizer: torch.optim.Optimizer
    objective: Objective
    running: Running


class Snapshots:
    """Of the training of one client in one round.

    Between two steps the training is written every so many seconds, and when whoever is told of
    the steps ends it by raising. Nothing is copied, and no GPU waited for, but then.

    Args:
        path: The file; None writes and reads nothing.
        every_s: Seconds between two, > 0.
        round_number: From 1.
        digest: Of all that the training begins with; asked only where there is something to read or
            to write, as it reads everything that was received and remembered.
    """

    def __init__(
        self, path: Path | None, every_s: float, round_number: int, digest: Callable[[], str]
    ) -> None:
        self._path = path
        self._every_s = every_s
        self._round_number = round_number
        self._digest = digest
        self._started = self._last = time.monotonic()
        self._seconds_before = 0.0

    def resume(self, training: Training) -> float:
        """Take the training to where a snapshot of it is, if there is one.

        Returns:
            Seconds that it had taken up to there; 0.0 without a snapshot.
        """
        if self._path is None or not self._path.exists():
            return 0.0
        try:
            notes = read_notes(self._path)
            if notes["round"] != self._round_number or notes["digest"] != self._digest():
                return 0.0  # left by another training
            state = read_state(self._path)
        except (*UNREADABLE, KeyError) as error:
            logger.warning(
                "%s cannot be read (%s); this client begins round %d from the start",
                self._path,
                error,
                self._round_number,
            )
            return 0.0
        training.student.load_state_dict(state["student"])
        training.student.draws.set_state(state["draws"]["dropout"].cpu())
        load_optimizer_state(training.optimizer, state["optimizer"])
        training.objective.load_step_state(state["objective"])
        running, sums = training.running, state["sums"]
        running.num_steps, running.terms = int(notes["num_steps"]), state["terms"]
        running.losses, running.labels = [sums["losses"]], [sums["labels"]]
        self._seconds_before = float(notes["seconds"])
        logger.info(
            "%s: training goes on after %d steps of round %d",
            self._path,
            running.num_steps,
            self._round_number,
        )
        return self._seconds_before

    def watch(self, training: Training, on_step: OnStep | None) -> OnStep | None:
        """What is to be called after each step instead of ``on_step``, which it calls."""
        path = self._path
        if path is None:
            return on_step

        def watched(done: int, total: int) -> None:
            is_due = time.monotonic() - self._last >= self._every_s
            if is_due:
                self._write(path, training)
            try:
                if on_step:
                    on_step(done, total)
            except BaseException:  # an interrupt, or a thread that is to stop
                if not is_due:
                    self._write(path, training)
                raise

        return watched

    def _write(self, path: Path, training: Training) -> None:
        running = training.running
        state: State = {
            "student": dict(training.student.state_dict()),
            "draws": {"dropout": training.student.draws.get_state()},
            "optimizer": optimizer_state(training.optimizer),
            "objective": training.objective.step_state(),
            "terms": running.terms,
            "sums": {"losses": torch.cat(running.losses), "labels": torch.cat(running.labels)},
        }
        notes: dict[str, int | float | str] = {
            "round": self._round_number,
            "digest": self._digest(),
            "num_steps": running.num_steps,
            "seconds": self._seconds_before + time.monotonic() - self._started,
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_state(state, path, notes=notes)
        except UNREADABLE as error:
            warn_once(path, error)
        self._last = time.monotonic()
