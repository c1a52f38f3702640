"""Ctrl-C while processes are started or ended."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deaf() -> Iterator[None]:
    """Ignore Ctrl-C meanwhile; processes that are started in here ignore it for good.

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
