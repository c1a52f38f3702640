"""Pixels that are decoded from their files whenever they are needed, ahead of their use."""

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedkd.data.image_files import decode_file, default_workers
from fedkd.data.pixels import Array, Integers, LazyPixels
from fedkd.errors import DataError

_BATCHES_AHEAD = 2


class FilePixels(LazyPixels):
    """The pixels that :func:`fedkd.data.image_files.decode_files` gives, but none of them is kept.

    Threads decode; at most two batches beyond the one in use are held (our choice: one may take
    longer than a step as long as two do not).

    Args:
        files: One per image.
        size: Width and height in pixels.
        num_workers: Threads; None is :func:`fedkd.data.image_files.default_workers`.
    """

    def __init__(self, files: Sequence[Path], size: int, num_workers: int | None = None) -> None:
        super().__init__((len(files), 3, size, size), np.uint8)
        self.files = files
        self.num_workers = num_workers or default_workers()

    def batches(self, plan: Iterable[Integers]) -> Generator[Array, None, None]:
        """Pixels of each batch, uint8 (len(rows), 3, size, size).

        Raises:
            DataError: A file cannot be read (any more).
        """
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="fedkd-decode")
        waiting: deque[tuple[Integers, list[Future[npt.NDArray[np.uint8] | str]]]] = deque()
        try:
            for rows in plan:
                size = self.shape[-1]
                waiting.append(
                    (rows, [pool.submit(decode_file, self.files[n], size) for n in rows])
                )
                if len(waiting) > _BATCHES_AHEAD:
                    yield self._gather(*waiting.popleft())
            while waiting:
                yield self._gather(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _gather(self, rows: Integers, decoded: list[Future[npt.NDArray[np.uint8] | str]]) -> Array:
        pixels = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for at, future in enumerate(decoded):
            result = future.result()
            if isinstance(result, str):
                raise DataError(
                    f"{self.files[rows[at]]} cannot be read any more ({result}), though it could "
                    "when this run started; put the file back and start again, or set "
                    'data.store = "mapped", which needs the files only once'
                )
            pixels[at] = result
        return pixels
