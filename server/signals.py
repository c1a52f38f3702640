"""SIGTERM and Ctrl-C: the first one ends a command in order, a second one at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised like Ctrl-C: every context manager ends what it started."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt at Ctrl-C and Terminated at SIGTERM, once; then both kill at once.

    For commands; who calls fedkd as a library keeps the handlers that he has. A signal that is
    ignored (``nohup``, a shell's background jobs) stays ignored. Handlers are put back at the end.
    Without effect outside the main thread, where Python sets none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number in SIGNALS if before[number] not in (signal.SIG_IGN, None)]

    terminated = False

    def interrupt(received: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = received == signal.SIGTERM
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
        if terminated:
            raise Terminated("SIGTERM")
        raise KeyboardInterrupt

    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    except KeyboardInterrupt as error:
        # Native code that notices a signal, such as Ray's, raises one of its own instead of ours.
        if terminated and not isinstance(error, Terminated):
            raise Terminated("SIGTERM") from error
        raise
    finally:
        for number in ours:
            signal.signal(number, before[number])


def keep_sigterm() -> None:
    """Give SIGTERM back to the handler that Python knows of, if native code has taken it.

    Ray takes it when it starts, and aborts the process then. Without effect outside the main
    thread.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)
