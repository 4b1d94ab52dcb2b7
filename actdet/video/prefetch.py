"""Makes items in a thread before they are asked for. Only worth it for work that runs without the interpreter's lock.

Decoding is such work.
"""

from __future__ import annotations

from collections.abc import Generator
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Generator[T, None, None], count: int) -> Generator[T, None, None]:
    """Give the `items` in order, while a thread makes up to `count` of them before they are asked for.

    An error in `items` is raised in its place, after the items before it. The thread starts when the first item is
    asked for. When the result is used up or closed, the thread finishes the item that it is making, closes `items` and
    ends.
    """
    # Simple queues have no lock that an exception raised by a signal handler could leave held.
    wanted: SimpleQueue[bool] = SimpleQueue()
    made: SimpleQueue[T | _End] = SimpleQueue()

    thread = Thread(target=_make, args=(items, wanted, made), name="prefetch", daemon=True)
    thread.start()
    try:
        for _ in range(count):
            wanted.put(True)
        while not isinstance(item := made.get(), _End):
            wanted.put(True)
            yield item
        if item.error:
            raise item.error
    finally:
        wanted.put(False)
        thread.join()


class _End:
    """What comes after the last item: the error that ended them, if there was one."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def _make(items: Generator[T, None, None], wanted: SimpleQueue[bool], made: SimpleQueue[T | _End]) -> None:
    """Run in the thread: make an item for each True in `wanted`, until a False or the end of the items."""
    end = _End()
    try:
        while wanted.get():
            made.put(next(items))
    except StopIteration:
        pass
    except BaseException as error:
        end = _End(error)
    finally:
        items.close()
        made.put(end)
