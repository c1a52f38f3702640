"""Ctrl-C while processes are started or ended."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


@contextmanager
def deaf() -> Iterator[None]:
    """Ignore Ctrl-C for a moment, in which processes are started that ignore it for good.

    The terminal sends it to them too, and they are to be stopped by this one alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def held_back(what: str = "what is being started is there") -> Iterator[None]:
    """Let Ctrl-C wait until the end of the block, where it does what it would have done.

    For the start of processes that block it by themselves and are not to be left half started, and
    for their end. A second Ctrl-C of a command is not held back: it kills.

    Args:
        what: What it waits for, for the log.
    """
    before = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or not callable(before):
        yield
        return
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        logger.warning("interrupted; it ends as soon as %s", what)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if received:
            signal.raise_signal(signal.SIGINT)
