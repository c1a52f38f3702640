"""Files that are there whole or not at all, and locks that processes hold while they make them."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; when the block ends well it becomes ``path``.

    An interrupted or failed write leaves what was there before.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def lock(path: Path, busy: str) -> FileLock:
    """Hold the lock in this file; the system frees it if the process that holds it dies.

    Args:
        path: Of the lock's own file; its folder must be there.
        busy: What another process is doing while this one waits, for the log: "is building ...".
    """
    held = FileLock(path)
    try:
        held.acquire(timeout=0)
    except Timeout:
        logger.info("another process %s; waiting for it ...", busy)
        held.acquire()
    return held
