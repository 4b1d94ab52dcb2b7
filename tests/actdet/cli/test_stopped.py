"""A signal ends a command with one line, leaves nothing half-written, and the work can go on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from actdet import pictures
from actdet.evaluation import report
from actdet.models.checkpoints import read_info
from tests.actdet.command import Actdet, group_ends, leftovers, lines_without_bars
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS
from tests.actdet.video.videos import write_video

OPTIONS = [*MODEL_OPTIONS, *TRAIN_OPTIONS]


class Process:
    """The command in a process of its own, which leads a group of processes.

    Args:
        arguments: What is typed after `actdet`.
        tiny: Whether its network is the small one of the tests.
    """

    def __init__(self, *arguments: object, tiny: bool = True) -> None:
        program = ["-m", "tests.actdet.tiny"] if tiny else ["-m", "actdet"]
        self.process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout
        os.set_blocking(self.output.fileno(), False)
        self.text = ""

    def kill(self) -> None:
        """End it and its children, if they are still there."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def wait_for(self, pattern: str, seconds: float = 120) -> None:
        """Wait until it has printed text that matches."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            self.text += (self.output.read() or b"").decode(errors="replace")
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.05)

    def end(self) -> list[str]:
        """Wait until it has ended; the lines that it has printed, without progress bars."""
        os.set_blocking(self.output.fileno(), True)
        self.text += self.process.communicate(timeout=200)[0].decode()
        assert "Traceback" not in self.text
        return lines_without_bars(self.text)

    def stopped_by(self, number: int) -> bool:
        """Whether its exit code says so."""
        return self.process.returncode == 128 + number


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Starts processes that are gone, whatever happens, when the test is over.

    They take Ctrl-C even where the tests run in the background of a shell, which ignores it for all its children.
    """
    with ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))

        def start(*arguments: object, tiny: bool = True) -> Process:
            process = Process(*arguments, tiny=tiny)
            stack.callback(process.kill)
            return process

        yield start


@pytest.mark.parametrize(
    ("command", "again", "folder"),
    [
        (("train", "--val-share", 0.3), ("--resume",), "."),
        (("crossval", "--folds", 2), (), "fold_1"),
    ],
)
def test_a_signal_while_the_report_is_drawn_stops_and_the_run_goes_on(
    actdet_command: Actdet,
    rendered: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[object, ...],
    again: tuple[object, ...],
    folder: str,
) -> None:
    draw = pictures.draw
    drawn = []

    def interrupted(*args: Any, **options: Any) -> Any:
        drawn.append(1)
        if len(drawn) == 10:
            os.kill(os.getpid(), signal.SIGINT)
        return draw(*args, **options)

    monkeypatch.setattr(report, "draw", interrupted)
    monkeypatch.setattr(pictures, "draw", interrupted)
    words = (*command[:1], rendered, "--out", tmp_path / "o", *command[1:], *OPTIONS, "--epochs", 1)
    outcome = actdet_command(*words)

    assert outcome.code == 128 + signal.SIGINT
    way = "the same command with --resume" if again else "the same command"
    assert outcome.err.splitlines()[-1] == f"actdet: stopped before its report was written: run {way} to go on"

    run = tmp_path / "o" / folder
    assert (run / "model.safetensors").exists()
    assert not (run / "report.html").exists()
    assert not leftovers(tmp_path)
    stopped_after = len(drawn)
    assert stopped_after < 20

    outcome = actdet_command(*words, *again)
    assert outcome.code == 0, outcome.err
    assert (run / "report.html").exists()
    assert "draw: 100%" in outcome.err
    assert len(drawn) > stopped_after


@pytest.mark.parametrize(
    ("tiny", "number", "epochs"),
    [
        pytest.param(True, signal.SIGINT, 12, id="Ctrl-C"),
        pytest.param(False, signal.SIGTERM, 3, id="SIGTERM to the real network", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_training_saves_and_goes_on(
    start: Callable[..., Process],
    rendered: Path,
    tmp_path: Path,
    tiny: bool,
    number: signal.Signals,
    epochs: int,
) -> None:
    """Ctrl-C goes to the whole group of processes, as from a terminal; SIGTERM to the command alone."""
    out = tmp_path / "o"
    total = 2 * epochs
    # The real network takes its time to evaluate.
    share = 0.2 if tiny else 0
    options = [*OPTIONS, "--workers", 1, "--val-share", share, "--epochs", epochs, "--out", out]
    first = start("train", rendered, *options, tiny=tiny)
    first.wait_for(rf" [1-9]\d*/{total} ")
    (os.killpg if tiny else os.kill)(first.process.pid, number)
    lines = first.end()
    assert first.stopped_by(number), first.text

    complaints = [line for line in lines if line.startswith("actdet: ")]
    assert len(complaints) == 1
    saying = rf"actdet: stopped at step (\d+) of {total}; the state is in (.*): run .* --resume .*"
    match = re.fullmatch(saying, complaints[0])
    assert match
    assert match[2] == str(out / "last.safetensors")
    assert {path.name for path in out.iterdir()} <= {"last.safetensors", "best.safetensors", "log.jsonl"}
    training = read_info(out / "last.safetensors").training
    assert training is not None
    assert training["step"] == int(match[1])
    # The real network has 30 million weights of 4 bytes, and AdamW two averages of each.
    assert (out / "last.safetensors").stat().st_size > (1 if tiny else 3 * 4 * 30e6)
    assert not leftovers(tmp_path)
    assert group_ends(first.process.pid)

    second = start("train", rendered, *options, "--resume", tiny=tiny)
    lines = second.end()
    assert second.process.returncode == 0, second.text
    assert f"model: {out / 'model.safetensors'}" in lines
    assert not (out / "last.safetensors").exists()

    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines() if '"lr"' in line]
    assert steps == sorted(set(steps))
    assert steps[-1] == total
    shutil.rmtree(out)


@pytest.mark.parametrize(
    ("number", "group", "after"),
    [
        (signal.SIGINT, True, 0),
        (signal.SIGINT, True, 2),
        (signal.SIGTERM, True, 0.5),
        (signal.SIGTERM, False, 0),
        (signal.SIGTERM, False, 2),
    ],
)
def test_a_signal_before_the_training_ends_in_one_line(
    start: Callable[..., Process], tmp_path: Path, number: signal.Signals, group: bool, after: float
) -> None:
    """Even while the processes that render are starting."""
    process = start("render", tmp_path / "o", "--clips", 5000, "--workers", 2, tiny=False)
    process.wait_for("render: ")
    time.sleep(after)
    (os.killpg if group else os.kill)(process.process.pid, number)
    assert process.end() == ["actdet: interrupted"]
    assert process.stopped_by(number)
    assert group_ends(process.process.pid)
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGTERM, False)])
def test_a_stopped_prepare_goes_on(
    start: Callable[..., Process], actdet_command: Actdet, tmp_path: Path, number: signal.Signals, group: bool
) -> None:
    """Ctrl-C goes to the whole group of processes, as from a terminal, or to the command alone."""
    data = tmp_path / "data"
    out = tmp_path / "out"
    (data / "videos").mkdir(parents=True)
    (data / "annotations").mkdir()
    long = write_video(data / "videos" / "long.mkv", "mjpeg", frames=1000, size=(320, 240))
    for name in "abc":
        write_video(data / "videos" / f"{name}.mkv", "mjpeg", frames=3, size=(320, 240))

    arguments = ("prepare", data, out, "--workers", 2)
    process = start(*arguments, tiny=False)
    process.wait_for(" 1/4 ")
    while len(list((out / "videos").glob("?.mp4"))) < 3:
        time.sleep(0.01)

    (os.killpg if group else os.kill)(process.process.pid, number)
    began = time.monotonic()
    assert process.end()[-1] == "actdet: interrupted"
    assert process.stopped_by(number)
    assert time.monotonic() - began < 10
    assert group_ends(process.process.pid)
    assert sorted(path.name for path in (out / "videos").iterdir()) == ["a.mp4", "b.mp4", "c.mp4"]

    write_video(long, "mjpeg", frames=30, size=(320, 240))
    second = actdet_command(*arguments)
    assert second.code == 0, second.err
    assert f"{out}: 4 clips, 3 of them were there already" in second.out.splitlines()


def test_a_stopped_predict_ends_at_once(start: Callable[..., Process], model: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mkv", "mjpeg", frames=2000, size=(64, 64))
    process = start("predict", model, video, "--out", tmp_path / "o")
    process.wait_for(r"draw v.mkv: .* [1-9]\d*/2000 ")

    began = time.monotonic()
    os.killpg(process.process.pid, signal.SIGINT)
    assert process.end()[-1] == "actdet: interrupted"
    assert process.stopped_by(signal.SIGINT)
    assert time.monotonic() - began < 10
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["v.json", "v.png"]
