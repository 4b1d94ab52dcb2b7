"""Work done ahead of time in a thread, for work that runs without the interpreter's lock, as decoding does."""

from __future__ import annotations

from collections.abc import Generator
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Generator[T, None, None], count: int) -> Generator[T, None, None]:
    """The `items` in order, of which a thread makes up to `count` before they are asked for.

    An error in `items` is raised in its place, after the items before it. The thread begins when the first item is
    asked for; when the result is used up or closed it closes `items`, after the item it is at, and ends.
    """
    # Simple queues have no lock that an exception out of a signal handler could leave held.
    wanted: SimpleQueue[bool] = SimpleQueue()
    made: SimpleQueue[T | _End] = SimpleQueue()
    thread = Thread(target=_make, args=(items, wanted, made), name="ahead", daemon=True)
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
    """What comes after the last item: the error that ended them, if one did."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def _make(items: Generator[T, None, None], wanted: SimpleQueue[bool], made: SimpleQueue[T | _End]) -> None:
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
