"""Training of a comparison's cells, here or in processes of their own, as far as it is not done."""

import json
import logging
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from fedkd import files
from fedkd.errors import FedkdError
from fedkd.experiment import open_experiment
from server.comparison.plan import Cell, Key
from server.scoreboard import Observer, Scoreboard
from server.simulation import run

logger = logging.getLogger(__name__)

ERROR = "error.txt"
"""In the folder of a cell that failed: one line, and what more there is to say."""
_TICK_S = 0.5
_END_S = 10.0


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


def finished_runs(folder: Path) -> dict[Key, Path]:
    """Directories of the finished runs among the cells, by key; of equals the first by name.

    Keyed by hash and mode alone, not by the cell's folder: its name changes as axes are added.
    """
    found: dict[Key, Path] = {}
    for path in sorted(folder.glob("*/*/summary.json")):
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if summary.get("status") == "finished":
            found.setdefault((summary["config_hash"], summary["mode"]), path.parent)
    return found


def run_cells(cells: Sequence[Cell], folder: Path, workers: int, watch: Watch) -> None:
    """Train all cells that are not finished yet, in the order given.

    What fails leaves its error in the file :data:`ERROR` of its folder, and the others go on.

    Args:
        cells: Cells of one key are trained once.
        folder: Of the run directories, each in a folder with its cell's name.
        workers: Cells at the same time. 1 trains in this process; more, each in a process of its
            own, which is started once and serves cell after cell.
        watch: Told how it goes.

    Raises:
        KeyboardInterrupt: Ctrl-C; no worker is left by then.
    """
    done = finished_runs(folder)
    todo = list({cell.key: cell for cell in reversed(cells) if cell.key not in done}.values())
    todo.reverse()
    if min(workers, len(todo)) > 1:
        _in_processes(todo, folder, min(workers, len(todo)), watch)
    else:
        for cell in todo:
            train(cell, folder, watch)


def train(cell: Cell, folder: Path, watch: Watch) -> None:
    """Run one cell in this process; any exception but an interruption becomes its error."""
    watch.started(cell)
    (folder / cell.recipe.name / ERROR).unlink(missing_ok=True)
    try:
        # Opening computes as well (a teacher's moments), and is to give the same bits everywhere.
        with _threads(cell.recipe.engine.num_threads):
            experiment = open_experiment(cell.recipe)
            result = run(
                experiment,
                centralized=cell.mode == "centralized",
                output=folder,
                observers=[_Teller(cell, watch)],
            )
    except Exception as error:  # whatever it is, the other cells go on
        line, details = _described(error)
        note_failure(cell, folder, line, details)
        watch.ended(cell, line, float("nan"))
    else:
        watch.ended(cell, "", result.summary["test"]["balanced_accuracy"])


def note_failure(cell: Cell, folder: Path, line: str, details: str = "") -> None:
    """Write a cell's error into its folder."""
    path = folder / cell.recipe.name / ERROR
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


class _Worker:
    """A process that trains one cell after another; its end of a pipe is this one's alone.

    One pipe each instead of a common queue: a process that is killed while it holds the lock of a
    queue would stop all the others.
    """

    def __init__(self, folder: Path) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, str(folder)), daemon=True)
        with _deaf():
            self.process.start()
        theirs.close()
        self.cell: Cell | None = None

    def give(self, cell: Cell) -> None:
        self.cell = cell
        with suppress(OSError):  # it has died; its end of the pipe will say so
            self.connection.send(cell)

    def end(self, at_once: bool) -> None:
        """Let it go, or make it stop what it does; its run directory says ``interrupted`` then."""
        self.connection.close()
        if at_once:
            self.process.terminate()

    def wait(self) -> None:
        self.process.join(_END_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _in_processes(cells: Sequence[Cell], folder: Path, workers: int, watch: Watch) -> None:
    waiting = deque(cells)
    pool: list[_Worker] = []
    interrupted = True
    try:
        while len(pool) < workers:
            pool.append(_Worker(folder))
        while waiting or any(worker.cell for worker in pool):
            for worker in pool:
                if waiting and worker.cell is None:
                    worker.give(waiting.popleft())
            busy = {worker.connection: worker for worker in pool if worker.cell}
            for connection in wait(list(busy), _TICK_S):
                assert isinstance(connection, Connection)
                worker = busy[connection]
                if not _heard(worker, watch):
                    _bury(worker, folder, watch)
                    pool.remove(worker)
                    if waiting:
                        pool.append(_Worker(folder))
            watch.tick()
        interrupted = False
    finally:
        with _deaf():  # a second Ctrl-C leaves no process behind either
            for worker in pool:
                worker.end(at_once=interrupted)
            for worker in pool:
                worker.wait()


def _heard(worker: _Worker, watch: Watch) -> bool:
    """Pass on one message; False if there will be none any more."""
    try:
        what, values = worker.connection.recv()
    except (EOFError, OSError):
        return False
    if what == "log":
        logging.getLogger(values[0]).log(*values[1:])
    else:
        assert worker.cell is not None
        cell, worker.cell = worker.cell, None if what == "ended" else worker.cell
        getattr(watch, what)(cell, *values)
    return True


def _bury(worker: _Worker, folder: Path, watch: Watch) -> None:
    worker.wait()
    code, cell = worker.process.exitcode, worker.cell
    assert cell is not None
    how = f"ended with code {code}"
    if code is not None and code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
    line = (
        f"its process {how}, of lack of memory mostly; start the same command again, with fewer "
        "compare.workers if it happens again"
    )
    note_failure(cell, folder, line)
    watch.ended(cell, line, float("nan"))


class _ToParent(logging.Handler):
    """Says in a worker what is told to the watch and the log of the parent."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(logging.WARNING)
        self._connection = connection

    def send(self, what: str, *values: Any) -> None:
        try:
            self._connection.send((what, values))
        except OSError:  # the parent has gone: nobody wants this run any more
            raise KeyboardInterrupt from None

    def emit(self, record: logging.LogRecord) -> None:
        self.send("log", record.name, record.levelno, self.format(record))

    def started(self, cell: Cell) -> None:
        self.send("started")

    def round_finished(self, cell: Cell, number: int) -> None:
        self.send("round_finished", number)

    def ended(self, cell: Cell, error: str, score: float) -> None:
        self.send("ended", error, score)

    def tick(self) -> None:
        # A parent that was killed cannot end its workers; they look for themselves.
        parent = parent_process()
        if parent is not None and not parent.is_alive():
            raise KeyboardInterrupt


def serve(connection: Connection, folder: str) -> None:
    """What a worker process does: train what comes through the pipe, until it is closed."""
    signal.signal(signal.SIGTERM, _interrupt)
    parent = _ToParent(connection)
    logging.basicConfig(level=logging.INFO, handlers=[parent], force=True)
    with suppress(KeyboardInterrupt, EOFError, OSError):
        while True:
            train(connection.recv(), Path(folder), parent)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _deaf() -> Iterator[None]:
    """Ignore Ctrl-C meanwhile; processes that are started in here ignore it for good.

    The terminal sends it to workers too, which are to be stopped by their parent alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
