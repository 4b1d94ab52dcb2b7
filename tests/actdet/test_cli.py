"""The command does its work, exits 0 only then, and otherwise says in one line what is wrong and where."""

from __future__ import annotations

import itertools
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
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import av
import pytest
import torch
from command import Actdet, small_disk
from safetensors.torch import save_file
from tiny import MODEL_OPTIONS, TRAIN_OPTIONS
from torchvision.models.video import R2Plus1D_18_Weights
from videos import corrupt, cut, write_sound, write_video

from actdet import experiments, training
from actdet.checkpoints import load_detector, read_about
from actdet.prediction import Predictor, Window
from actdet.step import TrainStep

COMMANDS = ["train", "evaluate", "predict", "crossval", "ablate", "render", "check", "prepare", "env", "demo"]
OPTIONS = [*MODEL_OPTIONS, *TRAIN_OPTIONS]
FIGURES = ("video_accuracy", "detection_accuracy", "mean_iou")


@pytest.fixture
def data(rendered: Path, tmp_path: Path) -> Path:
    """A copy of the rendered data set, to damage."""
    return Path(shutil.copytree(rendered, tmp_path / "data"))


@pytest.fixture
def model(trained: Path) -> Path:
    return trained / "model.safetensors"


def _leftovers(folder: Path) -> list[Path]:
    """Files that should have taken another's place or been removed."""
    return [path for path in folder.rglob("*") if "partial" in path.name or path.suffix == ".tmp"]


# What works


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(actdet_command: Actdet, command: str) -> None:
    outcome = actdet_command(command, "--help")
    assert outcome.code == 0
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", outcome.out).split())
    assert f"For instance: actdet {command}" in text


def test_help_lists_the_commands(actdet_command: Actdet) -> None:
    outcome = actdet_command("--help")
    assert outcome.code == 0
    assert all(command in outcome.out for command in COMMANDS)


def test_env_says_what_is_here(actdet_command: Actdet) -> None:
    outcome = actdet_command("env")
    assert (outcome.code, outcome.err) == (0, "")
    found = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in outcome.out.splitlines() if "  " in line)
    assert torch.__version__.startswith(found["torch"])
    assert found["device"].startswith("CPU" if not torch.cuda.is_available() else torch.cuda.get_device_name())
    for line in ("precision", "reader", "dali", "matching and loss"):
        assert line in outcome.out


def test_render_made_a_data_set_that_check_finds_good(actdet_command: Actdet, rendered: Path) -> None:
    outcome = actdet_command("check", rendered)
    assert outcome.code == 0
    assert outcome.out == f"{rendered}: 12 clips (4 fight, 4 collapse, 4 no action), nothing wrong\n"
    again = actdet_command("render", rendered, "--clips", 3)
    assert str(rendered / "videos") in again.complaint()


@pytest.mark.usefixtures("tiny_backbone")
def test_train_leaves_model_report_and_log(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {
        "log.jsonl",
        "metrics.json",
        "model.safetensors",
        "report.html",
        "videos",
    }
    detector, about = load_detector(trained / "model.safetensors")
    assert (about.model.image_size, about.model.frames, about.model.decoder_layers) == (32, 8, 1)
    assert not detector.training
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["clips"] == len(about.held_out) == 3
    assert {path.stem for path in (trained / "videos").iterdir()} == set(about.held_out)


@pytest.mark.parametrize("held_out", [False, True])
def test_evaluate_measures_all_clips_or_those_held_out(
    actdet_command: Actdet, rendered: Path, trained: Path, model: Path, tmp_path: Path, held_out: bool
) -> None:
    flags = ["--held-out"] if held_out else []
    outcome = actdet_command("evaluate", model, rendered, "--out", tmp_path / "e", "--workers", 0, *flags)
    assert outcome.code == 0, outcome.err
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert metrics["clips"] == (3 if held_out else 12)
    assert f"{metrics['clips']} clips: video accuracy {metrics['video_accuracy']:.3f}" in outcome.out
    assert f"mean IoU {metrics['mean_iou']:.3f}" in outcome.out
    assert (tmp_path / "e" / "report.html").is_file()
    if held_out:
        before = json.loads((trained / "metrics.json").read_text())
        assert metrics["confusion"] == before["confusion"]
        assert metrics["mean_iou"] == pytest.approx(before["mean_iou"], abs=0.01)  # bf16 where the CPU has it


def test_predict_writes_windows_and_videos(actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path) -> None:
    clip = sorted((rendered / "videos").iterdir())[0]
    outcome = actdet_command("predict", model, clip, "--out", tmp_path / "p", "--threshold", 0)
    assert outcome.code == 0, outcome.err
    (line,) = (line for line in outcome.out.splitlines() if line.startswith(clip.name))
    (window,) = json.loads((tmp_path / "p" / f"{clip.stem}.json").read_text())["windows"]
    assert f"{window['action']}" in line
    assert f"{window['score']:.2f}" in line
    assert len(window["box"]) == 4
    with av.open(str(tmp_path / "p" / f"{clip.stem}.mp4")) as drawn, av.open(str(clip)) as source:
        assert sum(1 for _ in drawn.decode(video=0)) == sum(1 for _ in source.decode(video=0))


def test_predict_goes_on_after_a_broken_video(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path
) -> None:
    good, bad = sorted((rendered / "videos").iterdir())[0], tmp_path / "bad.webm"
    bad.write_bytes(b"nothing")
    outcome = actdet_command("predict", model, bad, good, "--out", tmp_path / "p", "--no-annotate")
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    first, second = outcome.complaints
    assert first.startswith(f"actdet: {bad}: ")
    assert second == "actdet: 1 of 2 videos could not be read"
    assert {path.name for path in (tmp_path / "p").iterdir()} == {f"{good.stem}.json"}


def test_predict_prints_windows_as_they_are_found(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, found, printed = sorted((rendered / "videos").iterdir())[0], [], []

    def windows(self: Predictor, video: object) -> Iterator[Window]:
        for number in range(3):
            found.append(Window(float(number), number + 2.0, None, 0.25, None))
            yield found[-1]
            printed.append(sys.stdout.getvalue().splitlines())  # pyright: ignore[reportAttributeAccessIssue]
            assert not (tmp_path / "p").exists()

    monkeypatch.setattr(Predictor, "windows", windows)
    outcome = actdet_command("predict", model, clip, "--out", tmp_path / "p", "--no-annotate")
    assert outcome.code == 0, outcome.err
    lines = [f"{clip.name}  {n:7.2f} to {n + 2:7.2f} s  no action    0.25" for n in range(3)]
    assert printed == [lines[:1], lines[:2], lines]
    assert outcome.out.splitlines() == [*lines, f"results: {tmp_path / 'p'}"]
    assert json.loads((tmp_path / "p" / f"{clip.stem}.json").read_text())["windows"] == [asdict(w) for w in found]


def test_predict_prints_what_precedes_the_damage(actdet_command: Actdet, model: Path, tmp_path: Path) -> None:
    seconds = read_about(model).clip_seconds
    frames = round(25 * seconds * 5)
    path = write_video(tmp_path / "v.mkv", "mjpeg", frames=frames, size=(64, 64))
    corrupt(path, range(frames * 3 // 5, frames * 3 // 5 + 3))
    outcome = actdet_command("predict", model, path, "--out", tmp_path / "p")
    assert outcome.code == 1
    ends = [float(match[1]) for match in re.finditer(r"to +([\d.]+) s", outcome.out)]
    assert len(ends) == 5  # of 9 windows that overlap by half
    assert ends == pytest.approx([seconds * (1 + n / 2) for n in range(5)], abs=0.03)
    assert "only the first" in outcome.complaints[0]
    assert not (tmp_path / "p").exists()


def test_a_prepared_data_set_is_whole_and_trains(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small set"
    outcome = actdet_command("prepare", rendered, out, "--short-side", 48, "--gop", 4)
    assert (outcome.code, outcome.complaints) == (0, []), outcome.err
    clips, videos, reading = outcome.out.splitlines()
    assert clips == f"{out}: 12 clips"
    sizes = [sum(path.stat().st_size for path in (root / "videos").iterdir()) for root in (rendered, out)]
    assert videos == f"videos: {sizes[0] / 1e6:.1f} MB before, {sizes[1] / 1e6:.1f} MB after"
    assert re.fullmatch(
        r"reading 16 frames of a clip: \d+\.\d ms before, \d+\.\d ms after \(median of 8 clips\)", reading
    )
    figures = json.loads((out / "prepared.json").read_text())
    assert [figures["bytes_before"], figures["bytes_after"]] == sizes
    assert (figures["encoded"], figures["short_side"], figures["gop"]) == (12, 48, 4)
    checked = actdet_command("check", out)
    assert checked.out == f"{out}: 12 clips (4 fight, 4 collapse, 4 no action), nothing wrong\n"
    again = actdet_command("prepare", rendered, out, "--short-side", 48, "--gop", 4)
    assert again.out.splitlines()[0] == f"{out}: 12 clips, 12 of them were there already"
    trained = actdet_command("train", out, "--out", tmp_path / "run", "--epochs", 1, *OPTIONS)
    assert trained.code == 0, trained.err
    assert (tmp_path / "run" / "metrics.json").is_file()


def _times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("model.safetensors"))}


def test_crossval_trains_each_fold_once(actdet_command: Actdet, rendered: Path, tmp_path: Path) -> None:
    out = tmp_path / "cv"
    arguments = ("crossval", rendered, "--folds", 2, "--epochs", 1, "--out", out, *OPTIONS)
    outcome = actdet_command(*arguments)
    assert outcome.code == 0, outcome.err
    result = json.loads((out / "crossval.json").read_text())
    parts = [json.loads((out / f"fold_{k}" / "metrics.json").read_text()) for k in (1, 2)]
    assert [part["clips"] for part in parts] == [6, 6]
    held = [set(read_about(out / f"fold_{k}" / "model.safetensors").held_out) for k in (1, 2)]
    assert len(held[0] | held[1]) == 12
    for figure in FIGURES:
        a, b = (part[figure] for part in parts)
        assert result[figure]["mean"] == pytest.approx((a + b) / 2)
        assert result[figure]["std"] == pytest.approx(abs(a - b) / 2**0.5)  # of a sample of two
        assert f"{(a + b) / 2:.3f} +- {abs(a - b) / 2**0.5:.3f}" in outcome.out
    times = _times(out)
    assert len(times) == 2
    again = actdet_command(*arguments)
    assert (again.code, _times(out)) == (0, times)
    assert again.out == outcome.out
    other = actdet_command(*arguments, "--seed", 5)
    assert str(out) in other.complaint()
    assert _times(out) == times


def test_crossval_goes_on_where_a_fold_lost_its_report(actdet_command: Actdet, rendered: Path, tmp_path: Path) -> None:
    out = tmp_path / "cv"
    arguments = ("crossval", rendered, "--folds", 2, "--epochs", 1, "--out", out, *OPTIONS)
    first = actdet_command(*arguments)
    (out / "fold_2" / "metrics.json").unlink()
    again = actdet_command(*arguments)
    assert again.code == 0, again.err
    assert again.out == first.out


def test_ablate_prints_its_table_and_trains_each_row_once(
    actdet_command: Actdet, rendered: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ab"
    arguments = ("ablate", rendered, "--epochs", 1, "--out", out, *OPTIONS)
    outcome = actdet_command(*arguments)
    assert outcome.code == 0, outcome.err
    rows = json.loads((out / "ablation.json").read_text())["rows"]
    reported = {  # table 3 of the report
        "full loss": (1.000, 0.833, 0.51),
        "no GIoU loss": (1.000, 0.667, 0.43),
        "no L1 loss": (0.833, 0.500, 0.38),
        "classification only": (1.000, 0.167, 0.22),
    }
    assert rows.keys() == reported.keys()
    for name, theirs in reported.items():
        measured = json.loads((out / name.replace(" ", "_") / "metrics.json").read_text())
        (line,) = (line for line in outcome.out.splitlines() if line.startswith(name))
        cells = [f"{measured[figure]:.3f} ({value:.3f})" for figure, value in zip(FIGURES, theirs, strict=True)]
        assert re.split(r"\s{2,}", line.removeprefix(name).strip()) == cells
        assert rows[name]["measured"] == {figure: measured[figure] for figure in FIGURES}
    times = _times(out)
    again = actdet_command(*arguments)
    assert (again.code, _times(out), again.out) == (0, times, outcome.out)


# What does not


def test_check_lists_all_problems(actdet_command: Actdet, data: Path) -> None:
    videos = sorted((data / "videos").iterdir())
    cut(videos[0], 0.6)
    videos[1].write_bytes(b"")
    texts = [data / "annotations" / f"{video.stem}.txt" for video in videos]
    texts[2].write_text("0 1 2 3\n7 1 2 30 40\n")
    texts[3].with_name("nobody.txt").write_text("")
    outcome = actdet_command("check", data)
    assert outcome.complaint() == f"5 problems in {data}"
    for beginning in (f"{videos[0]}: ", f"{videos[1]}: ", f"{texts[2]}:1: ", f"{texts[2]}:2: "):
        assert any(line.startswith(beginning) for line in outcome.out.splitlines()), beginning
    assert str(data / "annotations" / "nobody.txt") in outcome.out
    assert len(outcome.out.splitlines()) == 5


def _missing(path: Path) -> None:
    path.unlink()


def _sound(path: Path) -> None:
    write_sound(path.with_suffix(".mp4"))
    path.with_suffix(".mp4").replace(path)


BAD_VIDEOS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: cut(path, 0.5),
    "no video": lambda path: path.write_text("this is text\n" * 100),
    "only sound": _sound,
}
BAD_LINES = {
    "few fields": "0 1 2 3",
    "many fields": "0 1 2 30 40 5",
    "words": "fight 1 2 30 40",
    "unknown class": "2 1 2 30 40",
    "negative class": "-1 1 2 30 40",
    "not a number": "0 1 2 x 40",
    "NaN": "0 1 2 nan 40",
    "swapped": "0 30 2 1 40",
    "outside": "0 1 2 30 400",
    "fractions": "0 0.1 0.2 0.3 0.4",
}


@pytest.mark.parametrize("damage", BAD_VIDEOS.values(), ids=BAD_VIDEOS)
def test_a_bad_video_is_named(
    actdet_command: Actdet, data: Path, model: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    video = sorted((data / "videos").iterdir())[2]
    damage(video)
    for arguments in (
        ("train", data, "--out", tmp_path / "o", "--epochs", 1, *OPTIONS),
        ("evaluate", model, data, "--out", tmp_path / "o", "--workers", 0),
    ):
        assert actdet_command(*arguments).complaint().startswith(f"{video}: ")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_annotation_is_named_with_its_line(actdet_command: Actdet, data: Path, tmp_path: Path, line: str) -> None:
    text = sorted((data / "annotations").iterdir())[5]
    text.write_text(f"0 1 2 30 40\n{line}\n")
    outcome = actdet_command("train", data, "--out", tmp_path / "o", *OPTIONS)
    assert outcome.complaint().startswith(f"{text}:2: ")


def _annotate_nobody(data: Path) -> None:
    (data / "annotations" / "nobody.txt").write_text("")


def _no_positive(data: Path) -> None:
    for path in (data / "annotations").iterdir():
        path.write_text("")


def _one_collapse(data: Path) -> None:
    for path in sorted((data / "annotations").glob("collapse*"))[1:]:
        path.unlink()
        (data / "videos" / f"{path.stem}.webm").unlink()


@pytest.mark.parametrize(
    ("change", "command", "beginning", "word"),
    [
        (lambda d: shutil.rmtree(d / "videos"), ["train"], "videos: ", "no such folder"),
        (lambda d: shutil.rmtree(d / "annotations"), ["train"], "annotations: ", "no such folder"),
        (_annotate_nobody, ["train"], "annotations/nobody.txt: ", "no video of this name"),
        (_no_positive, ["train"], "annotations: ", "none of the 12 clips has an action"),
        (_no_positive, ["train", "--val-share", 0], "annotations: ", "none of the 12 clips has an action"),
        (_one_collapse, ["train"], ": ", "only 1 clip of class collapse"),
        (_one_collapse, ["crossval", "--folds", 2], ": ", "only 1 clip of class collapse for 2 folds: add clips"),
        (lambda d: None, ["crossval"], ": ", "only 4 clips of class fight for 5 folds"),
    ],
)
def test_a_bad_data_set_is_named(
    actdet_command: Actdet,
    data: Path,
    tmp_path: Path,
    change: Callable[[Path], object],
    command: list[object],
    beginning: str,
    word: str,
) -> None:
    change(data)
    outcome = actdet_command(command[0], data, *command[1:], "--epochs", 1, "--out", tmp_path / "o", *OPTIONS)
    complaint = outcome.complaint()
    assert complaint.startswith(f"{data}{'/' * (beginning[0] != ':')}{beginning}")
    assert word in complaint


def test_the_advice_for_too_many_folds_works(actdet_command: Actdet, rendered: Path, tmp_path: Path) -> None:
    arguments = ("crossval", rendered, "--epochs", 1, "--out", tmp_path / "o", *OPTIONS)
    assert "use --folds 4 or fewer" in actdet_command(*arguments).complaint()
    assert actdet_command(*arguments, "--folds", 4).code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", 0], "epochs must be at least 1, got 0"),
        (["--batch-size", 0], "batch_size must be at least 1, got 0"),
        (["--lr", "nan"], "lr must be above 0"),
        (["--lr", -1], "lr must be above 0"),
        (["--warmup", 9, "--epochs", 3], "the 3 epochs, got 9.0"),
        (["--frames", 9], "frames must be a multiple of 8, got 9"),
        (["--image-size", 40], "image_size must be a multiple of 16"),
        (["--queries", 0], "queries must be at least 1"),
        (["--val-share", 1.5], "got 1.5"),
        (["--val-share", -0.1], "got -0.1"),
        (["--val-share", "nan"], "got nan"),
        (["--workers", -1], "workers must be 0 or more"),
        (["--precision", "fp16"], "fp16 needs a GPU"),
        (["--flip", 2], "flip is a probability"),
        (["--backbone-weights", "/no/such/file.pth"], "/no/such/file.pth: no such file"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="what a CPU refuses")
def test_bad_settings_are_refused(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, arguments: list[object], words: str
) -> None:
    options = dict(zip(OPTIONS[::2], OPTIONS[1::2], strict=True))
    options |= zip(arguments[::2], arguments[1::2], strict=True)
    options = itertools.chain.from_iterable(options.items())
    outcome = actdet_command("train", rendered, "--out", tmp_path / "o", *options)
    assert words in outcome.complaint()
    assert not (tmp_path / "o" / "model.safetensors").exists()


@pytest.mark.parametrize("folds", [1, 0, -3])
def test_too_few_folds_are_refused(actdet_command: Actdet, rendered: Path, tmp_path: Path, folds: int) -> None:
    outcome = actdet_command("crossval", rendered, "--folds", folds, "--out", tmp_path / "o", *OPTIONS)
    assert f"got {folds}" in outcome.complaint()


@pytest.mark.parametrize("threshold", ["-0.1", "1.5", "nan"])
def test_a_threshold_that_is_no_probability_is_refused(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path, threshold: str
) -> None:
    clip = sorted((rendered / "videos").iterdir())[0]
    outcome = actdet_command("predict", model, clip, "--threshold", threshold, "--out", tmp_path / "o")
    assert "threshold" in outcome.complaint()


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "x", "--nonsense", 3],
        ["train"],
        ["nonsense"],
        [],
        ["predict", "m", "v", "--threshold", "much"],
        ["train", "x", "--precision", "fp8"],
        ["train", "x", "--epochs", "1.5"],
    ],
    ids=str,
)
def test_a_mistyped_command_exits_2_and_names_it(actdet_command: Actdet, arguments: list[object]) -> None:
    outcome = actdet_command(*arguments)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert "--help" in outcome.err
    if len(arguments) > 1:
        assert str(arguments[-2]) in outcome.err


def _pickled(path: Path) -> None:
    torch.save({"a": torch.ones(2)}, path)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("epoch 1"),
        _pickled,
        lambda path: save_file({"a": torch.ones(2)}, path),
        lambda path: path.mkdir(),
    ],
    ids=["missing", "empty", "text", "pickle", "another's", "folder"],
)
def test_a_bad_checkpoint_is_named(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    path = tmp_path / "model.safetensors"
    make(path)
    clip = sorted((rendered / "videos").iterdir())[0]
    for arguments in (("evaluate", path, rendered), ("predict", path, clip)):
        assert actdet_command(*arguments, "--out", tmp_path / "o").complaint().startswith(f"{path}: ")


def test_a_cut_checkpoint_is_named(actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path) -> None:
    path = cut(Path(shutil.copy(model, tmp_path)), 0.9)
    assert actdet_command("evaluate", path, rendered).complaint().startswith(f"{path}: ")


def test_held_out_clips_of_another_data_set_are_missed(
    actdet_command: Actdet, data: Path, model: Path, tmp_path: Path
) -> None:
    for name in read_about(model).held_out:
        (data / "videos" / f"{name}.webm").unlink()
        (data / "annotations" / f"{name}.txt").unlink()
    outcome = actdet_command("evaluate", model, data, "--held-out", "--out", tmp_path / "o", "--workers", 0)
    assert outcome.complaint().startswith(f"{data}: holds none of the 3 clips")


@pytest.mark.parametrize("name", ["gone.mp4", "sound.m4a", "text.mp4", "empty.mp4"])
def test_predict_names_a_bad_video(actdet_command: Actdet, model: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "sound.m4a":
        write_sound(path)
    elif name != "gone.mp4":
        path.write_text("text" * (name == "text.mp4"))
    outcome = actdet_command("predict", model, path, "--out", tmp_path / "o")
    assert outcome.code == 1
    assert outcome.complaints[0].startswith(f"actdet: {path}: ")
    assert "Traceback" not in outcome.err


def test_predict_refuses_two_videos_of_one_name_and_none(actdet_command: Actdet, model: Path, tmp_path: Path) -> None:
    both = tmp_path / "a" / "v.mp4", tmp_path / "b" / "v.mkv"
    assert "same name" in actdet_command("predict", model, *both).complaint()
    assert "no video given" in actdet_command("predict", model).complaint()


def test_kinetics_weights_without_a_network(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(self: object, **options: object) -> None:
        raise URLError("Temporary failure in name resolution")

    monkeypatch.setattr(R2Plus1D_18_Weights, "get_state_dict", offline)
    outcome = actdet_command("train", rendered, "--out", tmp_path / "o", *MODEL_OPTIONS, "--workers", 0)
    complaint = outcome.complaint()
    assert "Temporary failure in name resolution" in complaint
    assert "--backbone-weights none" in complaint


def test_a_folder_that_holds_a_run_is_kept(actdet_command: Actdet, rendered: Path, trained: Path) -> None:
    before = (trained / "metrics.json").read_bytes()
    outcome = actdet_command("train", rendered, "--out", trained, "--epochs", 1, *OPTIONS)
    assert outcome.complaint().startswith(f"{trained} holds a run already")
    outcome = actdet_command("train", rendered, "--out", trained, "--epochs", 1, *OPTIONS, "--resume")
    assert outcome.complaint().startswith(f"{trained}: nothing to resume")
    assert (trained / "metrics.json").read_bytes() == before


def test_prepare_says_what_is_wrong(actdet_command: Actdet, data: Path, tmp_path: Path) -> None:
    out, name = tmp_path / "out", sorted((data / "videos").iterdir())[3].name
    assert f"{tmp_path / 'no'}: no such folder" in actdet_command("prepare", tmp_path / "no", out).complaint()
    assert "within the data set" in actdet_command("prepare", data, data / "out").complaint()
    assert actdet_command("prepare", data, out, "--gop", 0).complaint() == "gop must be at least 1, got 0"
    assert actdet_command("prepare", data, out, "--short-side", 99).complaint().startswith("short_side must be even")
    cut(data / "videos" / name, 0.6)
    assert actdet_command("prepare", data, out).complaint().startswith(f"{data / 'videos' / name}: ")
    assert not out.exists()


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


def test_train_says_which_paths_it_takes(actdet_command: Actdet, rendered: Path, tmp_path: Path) -> None:
    options = [*MODEL_OPTIONS, *TRAIN_OPTIONS, "--epochs", 1, "--ema-decay", 0.9, "--checkpointing"]
    outcome = actdet_command("train", rendered, "--out", tmp_path / "run", *options)
    assert outcome.code == 0, outcome.err
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("CPU, ")]
    for part in (
        "float32 (asked for)",
        "step eager (a CPU has no CUDA graphs)",
        "2-D convolutions (",
        "reader pyav (",
        "1 MiB of decoded clips kept in memory",
    ):
        assert f"; {part}" in line


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--step", "graph"], "step graph needs a GPU: use auto, eager or compile"),
        (["--step", "compile", "--checkpointing"], "step compile decides itself what to compute twice"),
        (["--ema-decay", "1.0"], "ema_decay must be in [0, 1), got 1.0"),
    ],
)
def test_a_step_that_cannot_be_had_is_refused(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, options: list[str], problem: str
) -> None:
    outcome = actdet_command("train", rendered, "--out", tmp_path / "run", *MODEL_OPTIONS, *TRAIN_OPTIONS, *options)
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith(f"actdet: {problem}")
    assert not (tmp_path / "run").exists()


def test_more_actions_than_queries_are_refused(actdet_command: Actdet, data: Path, tmp_path: Path) -> None:
    text = sorted((data / "annotations").iterdir())[0]
    text.write_text("0 1 2 30 40\n" * 4)
    outcome = actdet_command("train", data, "--queries", 3, "--out", tmp_path / "o", *OPTIONS)
    assert text.stem in outcome.complaint()
    assert "--queries 4" in outcome.complaint()


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
        f"leave it out by --bad-files skip, and go on by the same command (train: --resume); the state is in {out}"
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
    assert "by the same command" in actdet_command(*arguments).complaint()
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


def test_decoded_clips_are_kept_on_the_disk_for_the_next_run(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTDET_CACHE", str(tmp_path / "cache"))
    arguments = ("train", rendered, "--val-share", 0, "--epochs", 1, *OPTIONS, "--disk-cache", 0.5)
    outcome = actdet_command(*arguments, "--out", tmp_path / "one")
    assert outcome.code == 0, outcome.err
    assert "reader pyav (it keeps decoded clips on the disk)" in outcome.out
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache/clips").glob("*.npy")}
    assert len(kept) == 12
    assert actdet_command(*arguments, "--cache", "none", "--out", tmp_path / "two").code == 0
    assert {path: path.stat().st_mtime_ns for path in kept}.keys() == kept.keys()
    one, two = ((tmp_path / run / "log.jsonl").read_text().splitlines() for run in ("one", "two"))
    assert [json.loads(line)["loss"] for line in one] == [json.loads(line)["loss"] for line in two]
    complaint = actdet_command(*arguments, "--reader", "dali", "--out", tmp_path / "three").complaint()
    assert complaint == "reader dali keeps nothing on the disk: use reader pyav, or no --disk-cache"
    complaint = actdet_command("train", rendered, *OPTIONS, "--disk-cache", -1).complaint()
    assert complaint == "disk_cache must be 0 or more GiB, got -1.0"


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


# Processes


class Process:
    """The command in a process of its own."""

    def __init__(self, *arguments: object, tiny: bool = True) -> None:
        program = [str(Path(__file__).with_name("tiny.py"))] if tiny else ["-m", "actdet"]
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


def _gone(group: int) -> bool:
    """Whether no process of the group is left, within seconds: those that tidy up end last."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(
    ("tiny", "number", "code", "epochs"),
    [
        pytest.param(True, signal.SIGINT, 130, 30, id="Ctrl-C"),
        pytest.param(False, signal.SIGTERM, 143, 5, id="SIGTERM to the real network"),
    ],
)
def test_a_stopped_training_saves_and_goes_on(
    start: Callable[..., Process],
    rendered: Path,
    tmp_path: Path,
    tiny: bool,
    number: signal.Signals,
    code: int,
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
    assert first.process.returncode == code, first.text
    complaints = [line for line in lines if line.startswith("actdet: ")]
    assert len(complaints) == 1
    saying = rf"actdet: stopped at step (\d+) of {total}; the state is in (.*): run .* --resume .*"
    match = re.fullmatch(saying, complaints[0])
    assert match
    assert match[2] == str(out / "last.safetensors")
    assert {path.name for path in out.iterdir()} <= {"last.safetensors", "log.jsonl"}
    assert read_about(out / "last.safetensors").training["step"] == int(match[1])  # pyright: ignore
    assert (out / "last.safetensors").stat().st_size > (1 if tiny else 3 * 4 * 30e6)  # 30 M weights, two averages
    assert not _leftovers(tmp_path)
    assert _gone(first.process.pid)
    second = start("train", rendered, *options, "--resume", tiny=tiny)
    lines = second.end()
    assert second.process.returncode == 0, second.text
    assert f"model: {out / 'model.safetensors'}" in lines
    assert not (out / "last.safetensors").exists()
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines() if '"lr"' in line]
    assert steps == sorted(set(steps))
    assert steps[-1] == total
    shutil.rmtree(out)


def test_a_signal_before_the_training_ends_in_one_line(start: Callable[..., Process], tmp_path: Path) -> None:
    process = start("render", tmp_path / "o", "--clips", 5000, "--workers", 1)
    process.wait_for(r"clip/s|clip \[|\?clip")
    time.sleep(1)
    process.process.send_signal(signal.SIGTERM)
    assert process.end() == ["actdet: interrupted"]
    assert process.process.returncode == 143
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
    assert process.process.returncode == 128 + number
    assert time.monotonic() - began < 10
    assert _gone(process.process.pid)
    assert sorted(path.name for path in (out / "videos").iterdir()) == ["a.mp4", "b.mp4", "c.mp4"]
    write_video(long, "mjpeg", frames=30, size=(320, 240))
    second = actdet_command(*arguments)
    assert second.code == 0, second.err
    assert second.out.splitlines()[0] == f"{out}: 4 clips, 3 of them were there already"


def test_a_stopped_predict_ends_at_once(start: Callable[..., Process], model: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mkv", "mjpeg", frames=5000, size=(64, 64))
    process = start("predict", model, video, "--out", tmp_path / "o")
    process.wait_for(r"draw v.mkv: .* [1-9]\d*/5000 ")
    began = time.monotonic()
    os.killpg(process.process.pid, signal.SIGINT)
    assert process.end()[-1] == "actdet: interrupted"
    assert process.process.returncode == 130
    assert time.monotonic() - began < 10
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["v.json"]


def test_videos_with_odd_names_and_sizes_train(actdet_command: Actdet, tmp_path: Path) -> None:
    """Spaces, brackets, umlauts; 97 x 55 pixels; a video of one frame."""
    videos, texts = tmp_path / "my data" / "videos", tmp_path / "my data" / "annotations"
    videos.mkdir(parents=True)
    texts.mkdir()
    for number, (name, frames) in enumerate([("Tür auf", 9), ("<b> & 100%", 12), ("x#1?", 1), ("[red]", 30)]):
        write_video(videos / f"{name}.mkv", "mjpeg", frames=frames, size=(97, 55))
        (texts / f"{name}.txt").write_text(f"{number % 2} 3 4 50 51\n")
    out = tmp_path / "my run"
    outcome = actdet_command("train", tmp_path / "my data", "--epochs", 1, "--out", out, "--val-share", 0.5, *OPTIONS)
    assert outcome.code == 0, outcome.err
    assert len(list((out / "videos").iterdir())) == 2
