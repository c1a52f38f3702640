"""Where clients of one process keep their state: in its memory, beyond a limit in files."""

import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout
from flwr.app import Context
from safetensors import SafetensorError

from clients.state_file import State, read_state, write_state
from fedkd import paths
from fedkd.errors import DataError

FOLDER = "client-states"
"""In the cache; a folder in it for each memory that has files."""


class ProcessMemory:
    """Keeps tensors as they are: nothing is serialised below the limit.

    Beyond it the states whose clients have waited longest are written to files, and read when their
    client's turn comes. Files are gone when the memory, as a context manager, is left, or when the
    process ends; what a killed process has left is removed by the next one that writes. May be used
    by several threads, of which no two have the same client at the same time.

    Args:
        max_bytes: Bytes of tensors to hold; 0 means that every state goes to a file, None that
            none does. A tensor that several states share is counted in each of them.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        self._max_bytes = max_bytes
        self._held: dict[int, State] = {}  # those that have waited longest come first
        self._num_bytes = 0
        self._written: set[int] = set()
        self._folder: Path | None = None
        self._files = ExitStack()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Nothing is made before it is needed."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove all files."""
        self._files.close()

    def load(self, context: Context) -> State:
        """What was saved for this node last: the very tensors, or equal ones from a file."""
        node = context.node_id
        with self._lock:
            state = self._held.get(node)
            if state is not None or node not in self._written:
                return state or {}
            path = self._path(node)
        with self._told(path):
            return read_state(path)

    def save(self, context: Context, state: State) -> None:
        """Keep it; a node returns fresh tensors every time.

        Raises:
            DataError: It, or another one that has waited longer, cannot be written.
        """
        node = context.node_id
        with self._lock:
            previous = self._let_go(node)
            self._hold(node, state)
            try:
                while self._max_bytes is not None and self._num_bytes > self._max_bytes:
                    self._write(next(iter(self._held)))
            except DataError:
                # The client has what it had: it may be asked again.
                self._let_go(node)
                if previous:
                    self._hold(node, previous)
                raise
            if node in self._held and node in self._written:
                self._written.remove(node)
                self._path(node).unlink()

    def _hold(self, node: int, state: State) -> None:
        self._held[node] = state
        self._num_bytes += _num_bytes(state)

    def _let_go(self, node: int) -> State:
        state = self._held.pop(node, {})
        self._num_bytes -= _num_bytes(state)
        return state

    def _write(self, node: int) -> None:
        path = self._path(node)
        with self._told(path):
            write_state(self._held[node], path, flush=False)
        self._written.add(node)
        self._let_go(node)

    def _path(self, node: int) -> Path:
        if self._folder is None:
            folder = paths.cache_dir() / FOLDER
            with self._told(folder):
                self._folder = self._files.enter_context(_own_folder(folder))
        return self._folder / f"{node}.safetensors"

    @contextmanager
    def _told(self, path: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"cannot keep what clients remember in {path} ({error}); make room there, set "
                "FEDKD_CACHE to another folder, or raise engine.max_state_mb (it is "
                f"{(self._max_bytes or 0) / 1e6:g}) so that fewer states go to files"
            ) from error


def _num_bytes(state: State) -> int:
    return sum(tensor.nbytes for part in state.values() for tensor in part.values())


@contextmanager
def _own_folder(parent: Path) -> Iterator[Path]:
    """A new folder, removed at the end; those of processes that were killed are removed now."""
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob("*.lock"):
        _remove_if_nobodys(left)
    folder = Path(tempfile.mkdtemp(dir=parent))
    # The system frees a lock when its process ends, in whatever way.
    lock = FileLock(folder.with_suffix(".lock"))
    lock.acquire()
    folder.mkdir(exist_ok=True)  # removed by another process before it was locked
    # Also where nobody comes to the end of the block: when the interpreter does.
    remove = weakref.finalize(lock, _remove, folder, lock)
    try:
        yield folder
    finally:
        remove()


def _remove_if_nobodys(path: Path) -> None:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return
    _remove(path.with_suffix(""), lock)


def _remove(folder: Path, lock: FileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
