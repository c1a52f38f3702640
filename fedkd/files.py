"""Files that are there whole or not at all, and locks that processes hold while they make them."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path, flush: bool = True) -> Iterator[Path]:
    """Give a temporary path beside ``path``; when the block ends well it becomes ``path``.

    An interrupted or failed write leaves what was there before.

    Args:
        path: The file.
        flush: Wait until what is written is on the disk before it bears the name, so that the file
            is whole even if the machine loses its power. Not for what can be made again.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        if flush:
            _flush(part)
        os.replace(part, path)
        if flush:
            _flush(path.parent)
    finally:
        part.unlink(missing_ok=True)


def is_special(path: Path) -> bool:
    """Whether it is there but neither a file nor a folder: reading a pipe or device may not end."""
    return path.exists() and not (path.is_file() or path.is_dir())


def _flush(path: Path) -> None:
    """Wait until the file, or the names in a folder, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def append(path: Path, data: bytes, length: int) -> None:
    """Write at the end of a file, and wait until it is on the disk.

    Args:
        path: The file; made if it is not there.
        data: What is added.
        length: Bytes of the file that are good, and stay; what an interrupted call has left beyond
            them goes.
    """
    with path.open("r+b" if path.exists() else "xb") as file:
        file.truncate(length)
        file.seek(length)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


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
