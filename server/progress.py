"""What the terminal shows while a run goes: a bar, and one line a round, on stderr."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from fedkd.experiment import Experiment
from server.scoreboard import Observer, Scoreboard

QUIET_S = 8.0
"""Without a terminal, a line is printed when nothing was for so many seconds."""


class TerminalProgress(Observer):
    """Observer with a progress bar on a terminal, and plain lines elsewhere.

    Args:
        console: Writes to stderr.
        experiment: Gives numbers of rounds and names of clients.
    """

    def __init__(self, console: Console, experiment: Experiment) -> None:
        self._console = console
        self._names = experiment.partition.client_names
        self._num_rounds = experiment.recipe.num_rounds
        self._round = 0
        self._spoke = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._rounds = self._bar.add_task("rounds", total=self._num_rounds)
        self._client = self._bar.add_task("client", total=1)

    def __enter__(self) -> "TerminalProgress":
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the bar."""
        self._bar.stop()

    def run_resumed(self, board: Scoreboard) -> None:
        """Move the bar to where the run goes on."""
        self._bar.update(self._rounds, completed=len(board.rounds))

    def round_started(self, round_number: int) -> None:
        """Name the round in the bar."""
        self._round = round_number
        self._bar.update(self._rounds, description=f"round {round_number}/{self._num_rounds}")

    def client_progress(self, partition_id: int, what: str, done: int, total: int) -> None:
        """Move the client's bar, or say something if it has been quiet for long."""
        text = f"{self._names[partition_id]}: {what}"
        self._bar.update(self._client, description=text, completed=done, total=total)
        if not self._console.is_terminal and time.monotonic() - self._spoke > QUIET_S:
            self._say(f"round {self._round}/{self._num_rounds}  {text} {done}/{total}")

    def round_finished(self, board: Scoreboard) -> None:
        """One line: losses, val scores, seconds."""
        self._bar.update(self._rounds, completed=len(board.rounds))
        row = board.rounds[-1]
        val = "val by kNN" if board.experiment.scored_by_neighbours else "val"
        failed = f"{row['num_failed']} failed"
        if row["num_clients"]:
            failed = f"{row['num_failed']} of {row['num_clients'] + row['num_failed']} failed"
        parts = [
            f"round {row['round']}/{self._num_rounds}",
            f"loss {row['train_loss']:.3f}" if row["num_clients"] else "STUDENT KEPT",
            *([f"prior {row['prior']:.3f}"] if "prior" in row else []),
            f"{val}: bal. acc. {row['val_balanced_accuracy']:.3f}",
            f"mcc {row['val_mcc']:.3f}",
            f"tail recall {row['val_recall_tail']:.3f}",
            f"{row['seconds']:.1f} s",
            *([failed] if row["num_failed"] else []),
        ]
        self._say("  ".join(parts))

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False)
        self._spoke = time.monotonic()


class Bar:
    """A bar on a terminal; elsewhere a line at each new step, and when one takes long."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("")
        self._what, self._spoke = "", time.monotonic()

    def __enter__(self) -> "Bar":
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        self._bar.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that so many of ``total`` are done of what is being done."""
        self._bar.update(self._task, description=what, completed=done, total=total)
        late = time.monotonic() - self._spoke > QUIET_S
        if not self._console.is_terminal and (what != self._what or late):
            self._console.print(f"{what} {done}/{total}", highlight=False, markup=False)
            self._spoke = time.monotonic()
        self._what = what
