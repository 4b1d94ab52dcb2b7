"""What goes wrong in the middle of the work is one line, leaves nothing half-written, and the work can go on."""

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
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actdet import pictures
from actdet.cli import main as cli
from actdet.data.index import load_index
from actdet.evaluation import clips as evaluation
from actdet.evaluation import report
from actdet.models.checkpoints import read_about
from actdet.prediction import predictor as prediction
from actdet.training import experiments
from actdet.training import trainer as training
from actdet.training.train_step import TrainStep
from tests.actdet.command import Actdet, group_ends, small_disk
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS
from tests.actdet.video.videos import corrupt, write_video

OPTIONS = [*MODEL_OPTIONS, *TRAIN_OPTIONS]


def _leftovers(folder: Path) -> list[Path]:
    """Files that should have taken another's place or been removed."""
    return [path for path in folder.rglob("*") if "partial" in path.name or path.suffix == ".tmp"]


def test_prepare_tells_damage_and_goes_on_when_it_is_mended(actdet_command: Actdet, data: Path, tmp_path: Path) -> None:
    out, video = tmp_path / "out", sorted((data / "videos").iterdir())[3]
    video.unlink()
    bad = corrupt(
        write_video(data / "videos" / f"{video.stem}.mkv", "mjpeg", frames=200, size=(64, 64)), range(190, 195)
    )
    complaint = actdet_command("prepare", data, out, "--workers", 2).complaint()
    assert complaint.startswith(f"{bad}: only the first 190 of its 200 frames decode")
    assert not _leftovers(out)
    assert not (out / "videos" / f"{video.stem}.mp4").exists()
    made = len(list((out / "videos").iterdir()))
    bad.unlink()
    write_video(bad, "mjpeg", frames=20, size=(64, 64))
    outcome = actdet_command("prepare", data, out)
    assert outcome.code == 0, outcome.err
    already = f", {made} of them were there already" * (made > 0)
    assert outcome.out.splitlines()[0] == f"{out}: 12 clips{already}"
    other = actdet_command("prepare", data, out, "--gop", 9)
    assert "asked for: short side 256, GOP 9" in other.complaint()


def test_no_space_left_for_a_prepared_video(actdet_command: Actdet, rendered: Path, tmp_path: Path) -> None:
    load_index(rendered)  # its cache is written
    with small_disk(1200):
        outcome = actdet_command("prepare", rendered, tmp_path / "o")
    assert re.match(rf"{tmp_path}/o/videos/\w+\.mp4: cannot be written: ", outcome.complaint())
    assert not _leftovers(tmp_path)
    assert not list((tmp_path / "o" / "videos").iterdir())


def test_a_batch_too_large_for_the_gpu_says_what_fits(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 ...")

    card = SimpleNamespace(total_memory=16 * 2**30)
    monkeypatch.setattr(TrainStep, "run", run)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(experiments, "largest_batch", lambda *_, checkpointing: 28 if checkpointing else 13)
    options = [*MODEL_OPTIONS, *TRAIN_OPTIONS, "--batch-size", 40]
    outcome = actdet_command("train", rendered, "--out", tmp_path / "run", *options)
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1] == (
        "actdet: 16 GiB are too little for batches of 40 clips of 8 x 32 x 32: about 13 a GPU are possible, "
        "28 with --checkpointing; decoded clips take 0.0 GiB, none with --cache none"
    )


def _too_large_for_the_cpu(*_: object, **__: object) -> None:
    torch.empty(2**60, dtype=torch.uint8)


def test_a_batch_too_large_for_the_cpu_is_named(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainStep, "run", _too_large_for_the_cpu)
    options = [*MODEL_OPTIONS, *TRAIN_OPTIONS, "--batch-size", 40]
    assert actdet_command("train", rendered, "--out", tmp_path / "run", *options).complaint() == (
        "the CPU has too little free memory for batches of 40 clips of 8 x 32 x 32: "
        "use a smaller --batch-size, --frames or --image-size"
    )


@pytest.mark.parametrize("of", ["CPU", "GPU"])
def test_too_little_memory_for_a_detector_is_said(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    def too_large_for_the_gpu(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 ...")

    too_large = {"CPU": _too_large_for_the_cpu, "GPU": too_large_for_the_gpu}[of]
    monkeypatch.setattr(evaluation, "predict_batch", too_large)
    monkeypatch.setattr(prediction, "predict_batch", too_large)
    out = ["--out", tmp_path / "o"]
    clip = min((rendered / "videos").iterdir())
    complaint = actdet_command("evaluate", model, rendered, "--workers", 0, *out).complaint()
    assert complaint.startswith(f"the {of} has too little free memory for 8 clips of 8 x 32 x 32: ")
    complaint = actdet_command("predict", model, clip, *out).complaint()
    assert complaint.startswith(f"the {of} has too little free memory for windows of 8 x 32 x 32: ")
    assert ("CUDA_VISIBLE_DEVICES=" in complaint) == (of == "GPU")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_video_that_is_corrupt_in_the_middle_stops_the_training(
    actdet_command: Actdet, data: Path, tmp_path: Path, workers: int
) -> None:
    video = sorted((data / "videos").iterdir())[4]
    video.unlink()
    video = corrupt(write_video(video.with_suffix(".mkv"), "mjpeg", frames=30, size=(64, 64)), range(12, 16))
    (data / "annotations" / f"{video.stem}.txt").write_text("")
    out = tmp_path / "o"
    options = [option if option != "0" else str(workers) for option in OPTIONS[8:]]
    arguments = ("train", data, "--val-share", 0, "--epochs", 2, "--out", out, *OPTIONS[:8], *options)
    complaint = actdet_command(*arguments).complaint()
    assert complaint.startswith(f"{video}: ")
    assert "damaged" in complaint
    assert (
        f"leave it out by --bad-files skip, and go on by the same command with --resume; the state is in {out}"
        in complaint
    )
    assert not (out / "model.safetensors").exists()
    outcome = actdet_command(*arguments, "--resume", "--bad-files", "skip")
    assert outcome.code == 0, outcome.err
    assert [line for line in outcome.out.splitlines() if line.startswith(f"left out: {video}: ")]
    assert [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()][-1] == 2 * 2


def test_a_cross_validation_goes_on_without_a_bad_video(actdet_command: Actdet, data: Path, tmp_path: Path) -> None:
    video = sorted((data / "videos").iterdir())[0]
    video.unlink()
    video = corrupt(write_video(video.with_suffix(".mkv"), "mjpeg", frames=30, size=(64, 64)), range(12, 16))
    text = data / "annotations" / f"{video.stem}.txt"
    text.write_text(text.read_text() and "0 1 2 30 40")
    arguments = ("crossval", data, "--folds", 2, "--epochs", 1, "--out", tmp_path / "cv", *OPTIONS)
    assert "and go on by the same command; the state is" in actdet_command(*arguments).complaint()
    outcome = actdet_command(*arguments, "--bad-files", "skip")
    assert outcome.code == 0, outcome.err
    assert f"left out: {video}: " in outcome.out


def test_a_held_out_video_that_is_corrupt_is_left_out_of_the_report(
    actdet_command: Actdet, data: Path, tmp_path: Path
) -> None:
    for video in sorted((data / "videos").iterdir()):
        boxes = (data / "annotations" / f"{video.stem}.txt").read_text()
        if not boxes:  # all of one class, so that one of them is held out
            video.unlink()
            corrupt(write_video(video.with_suffix(".mkv"), "mjpeg", frames=30, size=(64, 64)), range(12, 16))
    out = tmp_path / "o"
    arguments = ("train", data, "--val-share", 0.3, "--epochs", 1, "--out", out, *OPTIONS)
    outcome = actdet_command(*arguments, "--bad-files", "skip")
    assert outcome.code == 0, outcome.err
    lines = [line for line in outcome.out.splitlines() if line.startswith("left out: ")]
    metrics = json.loads((out / "metrics.json").read_text())
    assert len(lines) == 4
    assert 0 < metrics["clips"] < 12 * 0.3
    page = (out / "report.html").read_text()
    assert all(line.removeprefix("left out: ").partition(":")[0] in page for line in lines)


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
    monkeypatch.setattr(cli, "_stop_signal", 0)
    words = (*command[:1], rendered, "--out", tmp_path / "o", *command[1:], *OPTIONS, "--epochs", 1)
    outcome = actdet_command(*words)
    assert outcome.code == 128 + signal.SIGINT
    way = "the same command" + " with --resume" * bool(again)
    assert outcome.err.splitlines()[-1] == f"actdet: stopped before its report was written: run {way} to go on"
    run = tmp_path / "o" / folder
    assert (run / "model.safetensors").exists()
    assert not (run / "report.html").exists()
    assert not _leftovers(tmp_path)
    stopped_after = len(drawn)
    assert stopped_after < 20

    monkeypatch.setattr(cli, "_stop_signal", 0)
    outcome = actdet_command(*words, *again)
    assert outcome.code == 0, outcome.err
    assert (run / "report.html").exists()
    assert "draw: 100%" in outcome.err
    assert len(drawn) > stopped_after


def test_a_run_in_the_folder_of_a_failed_one_begins_a_new_log(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    arguments = ("train", rendered, "--val-share", 0, "--out", tmp_path / "o", "--epochs", 2, *OPTIONS)
    assert "not finite" in actdet_command(*arguments, "--lr", 1e38).complaint()
    assert actdet_command(*arguments).code == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "o" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_no_space_left_for_the_model(actdet_command: Actdet, rendered: Path, tmp_path: Path, share: float) -> None:
    out = tmp_path / "o"
    with small_disk(1_000_000):
        outcome = actdet_command("train", rendered, "--val-share", share, "--epochs", 1, "--out", out, *OPTIONS)
    assert outcome.complaint().startswith(f"{out / 'model.safetensors'}: cannot be written: ")
    assert [path.name for path in out.iterdir()] == ["log.jsonl"]


def test_no_space_left_for_the_first_file(actdet_command: Actdet, data: Path, tmp_path: Path) -> None:
    (data / ".actdet-index.json").unlink(missing_ok=True)
    with small_disk(10):
        outcome = actdet_command("train", data, "--epochs", 1, "--out", tmp_path / "o", *OPTIONS)
    assert "cannot be written" in outcome.complaint()
    assert not _leftovers(tmp_path)


class Process:
    """The command in a process of its own."""

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
        os.set_blocking(self.process.stdout.fileno(), False)
        self.text = ""

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def wait_for(self, pattern: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            self.text += (self.process.stdout.read() or b"").decode(errors="replace")  # pyright: ignore
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.05)

    def end(self) -> list[str]:
        """The lines that are no progress bar, when it has ended."""
        os.set_blocking(self.process.stdout.fileno(), True)  # pyright: ignore
        self.text += self.process.communicate(timeout=200)[0].decode()
        assert "Traceback" not in self.text
        lines = (line.strip() for line in re.split("[\r\n]", self.text))
        return [line for line in lines if line and not re.search(r"\[\d\d:\d\d[^]]*\]$", line)]

    def stopped_by(self, number: int) -> bool:
        """Its exit code tells; Python ends by Ctrl-C itself where that came in an `exec`, as some imports have."""
        codes = (130, -signal.SIGINT) if number == signal.SIGINT else (128 + number,)
        return self.process.returncode in codes


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
    ("tiny", "number", "epochs"),
    [
        pytest.param(True, signal.SIGINT, 12, id="Ctrl-C"),
        pytest.param(False, signal.SIGTERM, 3, id="SIGTERM to the real network"),
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
    out, total = tmp_path / "o", 2 * epochs
    share = 0.2 if tiny else 0  # the real network takes its time to evaluate
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
    assert read_about(out / "last.safetensors").training["step"] == int(match[1])  # pyright: ignore
    assert (out / "last.safetensors").stat().st_size > (1 if tiny else 3 * 4 * 30e6)  # 30 M weights, two averages
    assert not _leftovers(tmp_path)
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
    """Also while the processes that render begin."""
    process = start("render", tmp_path / "o", "--clips", 5000, "--workers", 2, tiny=False)
    process.wait_for("render: ")
    time.sleep(after)
    (os.killpg if group else os.kill)(process.process.pid, number)
    assert process.end() == ["actdet: interrupted"]
    assert process.stopped_by(number)
    assert group_ends(process.process.pid)
    assert not _leftovers(tmp_path)


@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGTERM, False)])
def test_a_stopped_prepare_goes_on(
    start: Callable[..., Process], actdet_command: Actdet, tmp_path: Path, number: signal.Signals, group: bool
) -> None:
    """Ctrl-C goes to the whole group of processes, as from a terminal, or to the command alone."""
    data, out = tmp_path / "data", tmp_path / "out"
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
