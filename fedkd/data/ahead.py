"""Reading ahead of use: a thread makes the next items while the caller works on this one."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

Item = TypeVar("Item")


def read_ahead(items: Generator[Item, None, None], num: int) -> Generator[Item, None, None]:
    """The same items in the same order; a thread makes up to ``num`` of them beforehand.

    What making an item raises is raised where that item is asked for. Whoever does not read to the
    end closes the generator (``contextlib.closing``): it then waits for the item that is being
    made, and neither the thread nor ``items`` is left open. The thread starts with the first item
    that is asked for.

    Args:
        items: Made by the thread alone, one after the other.
        num: Items ready beyond the one in use, >= 1.
    """
    end = object()
    with closing(items), ThreadPoolExecutor(1, thread_name_prefix="fedkd-ahead") as pool:
        waiting: deque[Future[Item | object]] = deque(
            pool.submit(next, items, end) for _ in range(num)
        )
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, items, end))
                yield item  # type: ignore[misc]
        finally:
            for future in waiting:
                future.cancel()
