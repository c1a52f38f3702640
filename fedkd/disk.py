"""What can go wrong with the disk while files are fetched, in words."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedkd.errors import FetchError


@contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Errors of the disk in the block become a FetchError that names ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"the disk is full at {path.parent}; free some space and start again"
        else:
            text = (
                f"cannot use {path}: {error.strerror or error}; make its folder writable, or set "
                "FEDKD_DATA (for a teacher FEDKD_TEACHERS) to another one"
            )
        raise FetchError(text) from None


def require_room(folder: Path, num_bytes: int) -> None:
    """FetchError unless the disk of an existing folder has room for so many bytes more."""
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise FetchError(
            f"{folder} has {free / 1e6:.0f} MB free, and {num_bytes / 1e6:.0f} MB more are "
            "needed; free some, or set FEDKD_DATA (for a teacher FEDKD_TEACHERS) to a folder on "
            "another disk"
        )
