"""Processes that train the cells of a comparison."""

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from server.comparison.plan import Cell
from server.comparison.training import Watch, note_failure, train
from server.interrupts import deaf, held_back
from server.signals import PATIENCE_S, interruptible

_TICK_S = 0.5
_END_S = PATIENCE_S + 10.0
"""For a worker to finish its step, and to write what it has."""


class _Worker:
    """A process that trains one cell after another; its end of a pipe is this one's alone.

    One pipe each instead of a common queue: a process that is killed while it holds the lock of a
    queue would stop all the others.
    """

    def __init__(self, folder: Path) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, str(folder)), daemon=True)
        with deaf():
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


def in_processes(cells: Sequence[Cell], folder: Path, workers: int, watch: Watch) -> None:
    """Train cells in processes of their own; see :func:`server.comparison.runner.run_cells`.

    A process that dies fails its cell, and another one takes its place.
    """
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
        # A second Ctrl-C ends this process at once, and workers end with it.
        with held_back("all workers have ended"):
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
        pass


def serve(connection: Connection, folder: str) -> None:
    """What a worker process does: train what comes through the pipe, until it is closed."""
    threading.Thread(target=_follow_parent, daemon=True).start()
    parent = _ToParent(connection)
    logging.basicConfig(level=logging.INFO, handlers=[parent], force=True)
    with suppress(KeyboardInterrupt, EOFError, OSError), interruptible(announces=False):
        while True:
            train(connection.recv(), Path(folder), parent)


def _follow_parent() -> None:
    """End with a parent that was killed: in order, but at once if it had begun to end workers."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
