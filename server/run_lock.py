"""The lock of a run directory: one process at a time writes into it."""

import json
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedkd.errors import ConfigError

_LOCK = "lock"


def hold(run: Path, folder: Path) -> FileLock:
    """Hold a run, for as long as the process lives or until it is released.

    Args:
        run: The run directory.
        folder: Its folder with the lock's file; made if it is not there.

    Raises:
        ConfigError: Another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(exist_ok=True)
        lock = FileLock(folder / _LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        by_whom = ""
        with suppress(OSError, ValueError, KeyError):
            summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
            by_whom = f", in process {summary['pid']} on {summary['host']}"
        raise ConfigError(
            f"{run} is still running{by_whom}; wait for it, or end it first"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot write into {folder}: {error}; make it writable, or start a run that writes no "
            "checkpoints: checkpoint.every=0"
        ) from None
    return lock


def holder() -> dict[str, Any]:
    """Which process this is, for whoever finds its run still running."""
    return {"pid": os.getpid(), "host": platform.node()}
