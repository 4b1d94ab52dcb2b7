"""One bar follows all that a command does, and the training behind it stops when it is asked to."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import pytest

from actdet.cli.progress import ProgressBar, watch
from actdet.errors import Stopped
from actdet.training.trainer import Progress

pytestmark = pytest.mark.usefixtures("own_handlers")


@dataclass(frozen=True)
class FakeSession:
    """What `watch` uses of a session."""

    again: str = "the same command"
    drawing: Callable[[int, int], None] | None = None


def step(number: int, total: int, loss: float | None = None) -> Progress:
    record = None if loss is None else {"loss": {"total": loss}}
    return Progress(epoch=2, step_number=number, total_steps=total, record=record)


def open_bar(**options: Any) -> ProgressBar:
    return ProgressBar(file=io.StringIO(), mininterval=0, **options)


def shown(bar: ProgressBar) -> tuple[str, int, int | None, str]:
    return bar.desc, bar.n, bar.total, bar.unit


def test_a_bar_shows_how_much_of_how_much_is_done() -> None:
    with open_bar(desc="read", unit="video") as bar:
        for done in (1, 3, 4):
            bar.show(done, 4)
            assert shown(bar) == ("read", done, 4, "video")


def test_a_bar_of_work_that_never_began_is_taken_away() -> None:
    """Any other stays, whether its work was done or not."""
    for total, done in ((None, 0), (4, 0), (4, 2), (4, 4)):
        stream = io.StringIO()
        with ProgressBar(file=stream, mininterval=0, desc="read", unit="video") as bar:
            if total is not None:
                bar.show(done, total)
        last_line = stream.getvalue().rpartition("\n")[2].rstrip("\r").rpartition("\r")[2].strip()
        left = stream.getvalue().rpartition("\n")[0].rpartition("\r")[2]
        assert not last_line
        assert left == "" if total is None else left.startswith("read: ")


def test_one_training_after_another_and_their_drawing_are_bars_of_their_own() -> None:
    with open_bar(unit="step") as bar:
        for number in (1, 2, 3):
            bar.show_step("fold 1", step(number, 3, loss=0.5))
            assert shown(bar) == ("fold 1: ", number, 3, "step")
        assert bar.postfix == "epoch=3, loss=0.500"

        bar.show_drawing(1, 40)
        assert shown(bar) == ("draw: ", 1, 40, "frame")
        assert not bar.postfix
        bar.show_drawing(2, 40)
        assert shown(bar) == ("draw: ", 2, 40, "frame")

        bar.show_step("fold 2", step(1, 3))
        assert shown(bar) == ("fold 2: ", 1, 3, "step")


def test_a_resumed_training_begins_where_it_was() -> None:
    with open_bar(unit="step") as bar:
        bar.show_step("train", step(7, 10))
        assert shown(bar) == ("train: ", 7, 10, "step")
        # The speed counts the steps after these.
        assert bar.initial == 6


def test_a_hidden_bar_shows_nothing() -> None:
    stream = io.StringIO()
    with ProgressBar(file=stream, disable=True) as bar:
        bar.show(1, 2)
        bar.show_step("train", step(1, 2, loss=1.0))
        bar.show_drawing(1, 2)
    assert stream.getvalue() == ""


def test_a_line_is_printed_above_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with open_bar(desc="door.mp4", total=2) as bar:
        bar.print_above("0.00 to 2.00 s\x1b[2J")
        assert capsys.readouterr().out == "0.00 to 2.00 s\\x1b[2J\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_the_training_to_stop(number: signal.Signals) -> None:
    asked = []

    def start(session: Any) -> Generator[Any, bool | None, str]:
        asked.append((yield step(1, 3)))
        os.kill(os.getpid(), number)
        asked.append((yield ("train", step(2, 3))))
        return "saved"

    assert watch(FakeSession(), start) == "saved"  # pyright: ignore[reportArgumentType]
    assert asked == [False, True]


def test_a_signal_ends_the_drawing_of_a_report() -> None:
    drawn = []

    def start(session: Any) -> Generator[Any, bool | None, None]:
        yield step(1, 1)
        for frame in (1, 2, 3):
            session.drawing(frame, 3)
            drawn.append(frame)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped, match="before its report was written"):
        watch(FakeSession(), start)  # pyright: ignore[reportArgumentType]
    assert drawn == [1]
