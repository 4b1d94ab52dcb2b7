"""Items come in order, few of them before they are asked for, and no thread outlives its work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing

import pytest

from actdet.video.prefetch import prefetch


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    """No thread is there before a test, and none after it."""
    assert _threads() == []
    yield
    assert _threads() == []


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("count", [1, 3, 50])
@pytest.mark.parametrize("length", [0, 1, 2, 20])
def test_all_items_come_in_order_once(length: int, count: int) -> None:
    assert list(prefetch((i for i in range(length)), count)) == list(range(length))


@pytest.mark.parametrize("count", [1, 4])
def test_a_thread_makes_so_many_in_advance_and_no_more(count: int) -> None:
    made: list[int] = []
    makers = set()

    def items() -> Generator[int, None, None]:
        for i in range(40):
            made.append(i)
            makers.add(threading.current_thread().name)
            yield i

    with closing(prefetch(items(), count)) as results:
        assert not made
        for taken, _ in enumerate(results, start=1):
            due = min(taken + count, 40)
            _wait_for(lambda due=due: len(made) == due)
            time.sleep(0.002)
            assert len(made) == due
    assert len(makers) == 1
    assert threading.main_thread().name not in makers


@pytest.mark.parametrize("count", [1, 3, 50])
@pytest.mark.parametrize("place", [0, 1, 7])
def test_an_error_comes_after_the_items_before_it(place: int, count: int) -> None:
    def items() -> Generator[int, None, None]:
        yield from range(place)
        raise KeyError("here")

    taken: list[int] = []
    with pytest.raises(KeyError, match="here"):
        list(map(taken.append, prefetch(items(), count)))
    assert taken == list(range(place))


@pytest.mark.parametrize("taken", [0, 1, 5])
@pytest.mark.parametrize("how", ["closed", "failed", "dropped"])
def test_who_stops_early_leaves_no_thread_and_nothing_open(taken: int, how: str) -> None:
    state = []

    def items() -> Generator[int, None, None]:
        state.append("open")
        try:
            for i in range(10**9):
                time.sleep(0.001)
                yield i
        finally:
            state.append("closed")

    results = prefetch(items(), 3)
    for _ in range(taken):
        next(results)
    if how == "closed":
        results.close()
    elif how == "failed":
        with pytest.raises(RuntimeError, match="consumer"):
            results.throw(RuntimeError("consumer"))
    else:
        del results

    # A thread that was never asked for anything never started.
    assert state == (["open", "closed"] if taken else [])
