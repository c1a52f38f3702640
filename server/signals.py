"""SIGTERM and Ctrl-C: the first one ends a command in order, a second one at once.

What a handler raises is lost where Python happens to be in a finaliser ("Exception ignored in
..."), and in the middle of a step it leaves a step half done. So while clients train the first
signal is only noted, and raised at the next safe place, between two steps.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE_S = 20.0
"""Seconds to wait for a safe place before it is raised wherever the program is."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised like Ctrl-C: every context manager ends what it started."""


class _Told:
    """What this process was told by a signal, once for all who ask."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.stretches = 0
        self.announces = True
        self._before: object = None
        self._armed = False

    def error(self) -> KeyboardInterrupt:
        return Terminated("SIGTERM") if self.number == signal.SIGTERM else KeyboardInterrupt()

    def receive(self, number: int, ours: Sequence[signal.Signals]) -> None:
        """Deal with the first signal; the next one kills."""
        for one in ours:
            signal.signal(one, signal.SIG_DFL)
        self.number = number
        if not self.stretches:
            raise self.error()
        if self.announces:
            name = "terminated" if number == signal.SIGTERM else "interrupted"
            _say(f"{name}: finishing the current step; a second Ctrl-C stops at once")
        self._before = signal.signal(signal.SIGALRM, self._lose_patience)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
        self._armed = True

    def disarm(self) -> None:
        """Wait no longer."""
        if self._armed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before)  # type: ignore[arg-type]
            self._armed = False

    def _lose_patience(self, number: int, frame: FrameType | None) -> None:
        if self.stretches:
            if self.announces:
                _say(f"the current step takes longer than {PATIENCE_S:g} s: stopping within it")
            raise self.error()


_told = _Told()


@contextmanager
def interruptible(announces: bool = True) -> Iterator[None]:
    """Raise KeyboardInterrupt at Ctrl-C and Terminated at SIGTERM, once; then both kill at once.

    For commands; who calls fedkd as a library keeps the handlers that he has. At once, but inside
    :func:`gently`. A signal that is ignored (``nohup``, a shell's background jobs) stays ignored.
    Handlers are put back at the end. Without effect outside the main thread, where Python sets
    none.

    Args:
        announces: Whether to say on stderr that the current step is still finished.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number in SIGNALS if before[number] not in (signal.SIG_IGN, None)]

    def interrupt(received: int, frame: FrameType | None) -> None:
        _told.receive(received, ours)

    _told.number, _told.announces = None, announces
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
        safe_place()  # a signal that was lost in a finaliser
    except KeyboardInterrupt as error:
        # Native code that notices a signal, such as Ray's, raises one of its own instead of ours.
        if _told.number == signal.SIGTERM and not isinstance(error, Terminated):
            ours_instead = Terminated("SIGTERM")
            for note in getattr(error, "__notes__", ()):
                ours_instead.add_note(note)
            raise ours_instead from error
        raise
    finally:
        _told.disarm()
        _told.number = None
        for number in ours:
            signal.signal(number, before[number])


@contextmanager
def gently() -> Iterator[None]:
    """Let the first signal wait for the next :func:`safe_place` in here, or for the end.

    If none comes within ``PATIENCE_S``, it is raised wherever the program is then, and once more at
    the next safe place if that was in vain. An error that ends the block after a signal is logged,
    and the signal is raised. Without effect where signals are not :func:`interruptible`.
    """
    safe_place()
    _told.stretches += 1
    try:
        yield
    except Exception as error:
        if _told.number is None:
            raise
        logger.error("before it was stopped, this went wrong: %s", error)
        raise _told.error() from error
    finally:
        _told.stretches -= 1
        if not _told.stretches:
            _told.disarm()
    safe_place()


def safe_place() -> None:
    """Raise what was noted, if anything was: here nothing is half done.

    Raises:
        KeyboardInterrupt: After Ctrl-C.
        Terminated: After SIGTERM.
    """
    if _told.number is not None:
        _told.disarm()
        raise _told.error()


def keep_sigterm() -> None:
    """Give SIGTERM back to the handler that Python knows of, if native code has taken it.

    Ray takes it when it starts, and aborts the process then. Without effect outside the main
    thread.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)


def _say(text: str) -> None:
    """A line on stderr, which the interrupted code may just be writing to by print."""
    line_break = "\n" if sys.stderr.isatty() else ""
    with suppress(OSError, ValueError):
        os.write(2, f"{line_break}fedkd: {text}\n".encode())
