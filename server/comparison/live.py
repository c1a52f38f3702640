"""What the terminal shows while a comparison goes: a live table, or lines, on stderr."""

import math
import statistics
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from server.comparison.outcome import Outcome
from server.comparison.plan import Cell, Key, Plan

QUIET_S = 10.0
"""Without a terminal, a line is printed when nothing was for so many seconds."""


class LiveTable:
    """A row per setting and arm on a terminal; elsewhere a line per cell, and when it is quiet.

    Args:
        console: Writes to stderr.
        plan: The cells.
        outcome: What there is already.
        workers: Cells at the same time.
    """

    def __init__(self, console: Console, plan: Plan, outcome: Outcome, workers: int) -> None:
        self._console, self._plan = console, plan
        self._scores: dict[Key, float] = {}
        self._seconds: dict[Key, float] = {}
        for cell, row in zip(plan.cells, outcome.cells.to_dict("records"), strict=True):
            if row["status"] == "finished":
                self._scores[cell.key] = row["balanced_accuracy"]
                self._seconds[cell.key] = row["seconds"]
        self._total = len(plan.runs)
        self._workers = max(1, min(workers, self._total - len(self._scores)))
        self._running: dict[Key, tuple[Cell, float, int]] = {}
        self._failed: set[Key] = set()
        self._began = self._spoke = time.monotonic()
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=2, transient=True
        )

    def __enter__(self) -> "LiveTable":
        """Show the table."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the table; the command prints the final one."""
        if self._console.is_terminal:
            self._live.stop()

    @property
    def num_done(self) -> int:
        """Cells that are finished."""
        return len(self._scores)

    def started(self, cell: Cell) -> None:
        """A cell begins."""
        self._running[cell.key] = (cell, time.monotonic(), 0)

    def round_finished(self, cell: Cell, number: int) -> None:
        """A cell has gone on by a round."""
        self._running[cell.key] = (*self._running[cell.key][:2], number)
        self.tick()

    def ended(self, cell: Cell, error: str, score: float) -> None:
        """A cell is over."""
        key = cell.key
        # A process may have died before it began what it was given.
        seconds = time.monotonic() - self._running.pop(key, (cell, time.monotonic(), 0))[1]
        if error:
            self._failed.add(key)
            result = f"failed: {error}"
        else:
            self._scores[key], self._seconds[key] = score, seconds
            result = f"test bal. acc. {score:.3f}, {seconds:.0f} s"
        number = len(self._scores) + len(self._failed)
        if error or not self._console.is_terminal:
            self._say(f"cell {number} of {self._total} {cell.label}: {result}")

    def tick(self) -> None:
        """Say something if it has been quiet for long."""
        if not self._console.is_terminal and time.monotonic() - self._spoke > QUIET_S:
            running = [
                f"{cell.label} (round {number}/{cell.recipe.num_rounds})"
                for cell, _, number in self._running.values()
            ]
            self._say(f"{self._summary()}; now {', '.join(running) or 'starting processes'}")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)
        self._spoke = time.monotonic()

    def _summary(self) -> str:
        parts = [f"{self.num_done} of {self._total} cells done"]
        if self._failed:
            parts.append(f"{len(self._failed)} failed")
        parts.append(f"{_duration(time.monotonic() - self._began)} elapsed")
        left = self._seconds_left()
        return ", ".join([*parts, *([f"about {_duration(left)} left"] if left is not None else [])])

    def _seconds_left(self) -> float | None:
        """By the mean time of the arm's finished cells, or else of all; None before any."""
        if not self._seconds:
            return None
        by_arm: dict[str, list[float]] = {}
        for key, cell in self._plan.runs.items():
            if key in self._seconds:
                by_arm.setdefault(cell.arm, []).append(self._seconds[key])
        running = dict(self._running)
        mean, now = statistics.fmean(self._seconds.values()), time.monotonic()
        left = 0.0
        for key, cell in self._plan.runs.items():
            if key not in self._scores and key not in self._failed:
                expected = statistics.fmean(by_arm.get(cell.arm, [mean]))
                spent = now - running[key][1] if key in running else 0.0
                left += max(0.0, expected - spent)
        return left / self._workers

    def _render(self) -> Group:
        table = Table(expand=False)
        if self._plan.settings != ("",):
            table.add_column("setting", overflow="fold")
        for name in ("arm", "seeds", "now", "test bal. acc."):
            table.add_column(name, overflow="fold", justify="right" if name[0] in "st" else "left")
        for setting in self._plan.settings:
            for arm in self._plan.arms:
                cells = [c for c in self._plan.cells if (c.setting, c.arm) == (setting, arm)]
                if cells:
                    first = [escape(setting)] if self._plan.settings != ("",) else []
                    table.add_row(*first, escape(arm), *self._row(cells))
            table.add_section()
        return Group(Text(self._summary()), table)

    def _row(self, cells: Sequence[Cell]) -> list[str]:
        keys = [cell.key for cell in cells]
        running = dict(self._running)  # drawn by a thread while cells come and go
        scores = [self._scores[key] for key in keys if key in self._scores]
        now = [
            f"seed {cell.seed} round {running[key][2]}/{cell.recipe.num_rounds}"
            for cell, key in zip(cells, keys, strict=True)
            if key in running
        ]
        if failed := sum(key in self._failed for key in keys):
            now.append(f"[red]{failed} failed[/red]")
        return [f"{len(scores)}/{len(cells)}", ", ".join(now), mean_and_sd(scores)]


def mean_and_sd(values: Sequence[float]) -> str:
    """Mean ± sample sd of the numbers among them; "-" without any, no sd for one."""
    found = [value for value in values if not math.isnan(value)]
    if len(found) < 2:
        return f"{found[0]:.3f}" if found else "-"
    return f"{statistics.fmean(found):.3f} ± {statistics.stdev(found):.3f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds // 3600:.0f} h {seconds % 3600 / 60:.0f} min"
