"""Processes of a rehearsal: started with a log each, and ended by their ids, whatever happens."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path

COLOUR = re.compile(r"\x1b\[[0-9;]*m")

_END_S = 15.0
_PR_SET_PDEATHSIG = 1


class Started:
    """A process of ours, and those that it starts.

    Args:
        name: For messages.
        command: Program and arguments.
        log: File for all that it and its children print.
        environment: Its environment.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                # Ctrl-C is for this script, which ends them in order, and finds them by session.
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )

    def fate(self) -> str | None:
        """How it ended; None if it has not."""
        code = self.process.poll()
        if code is None:
            return None
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with code {code}"

    def said(self) -> str:
        """What it has printed so far, without colours."""
        return COLOUR.sub("", self.log.read_text(errors="replace"))


def end(started: Sequence[Started]) -> None:
    """End processes and all that they started: first politely, after 15 s by SIGKILL."""
    for s in reversed(started):
        if s.process.poll() is None:
            s.process.terminate()
    sessions = {s.process.pid for s in started}
    deadline = time.monotonic() + _END_S
    while time.monotonic() < deadline:
        running = [s for s in started if s.process.poll() is None]
        if not running and not _members(sessions):
            return
        time.sleep(0.1)
    for pid in _members(sessions):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for s in started:
        s.process.kill()
        s.process.wait()


def _end_with_parent() -> None:
    """Be told to end when the script is killed, which it cannot tell itself."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _members(sessions: Set[int]) -> list[int]:
    """Processes of our sessions, also those whose parent is gone; none where /proc is missing."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(session) in sessions and state not in "ZX":
            found.append(int(entry.name))
    return found
