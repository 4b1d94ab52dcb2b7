"""Work done ahead of time in a thread, for work that runs without the interpreter's lock, as decoding does."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Generator[T, None, None], count: int) -> Generator[T, None, None]:
    """The `items` in order, of which a thread makes up to `count` before they are asked for.

    An error in `items` is raised in its place, after the items before it. The thread begins when the first item is
    asked for; when the result is used up or closed it ends, after the item it is at, and `items` are closed.
    """
    pool = ThreadPoolExecutor(1, "ahead")
    try:
        waiting = deque(pool.submit(list, islice(items, 1)) for _ in range(count))
        while item := waiting.popleft().result():
            waiting.append(pool.submit(list, islice(items, 1)))
            yield item[0]
    finally:
        pool.shutdown(cancel_futures=True)
        items.close()
