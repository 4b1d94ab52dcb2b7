"""What the commands make of a data set as people have them: other classes, missing, bad and stray files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actdet.models.checkpoints import read_info
from tests.actdet.command import Actdet
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS
from tests.actdet.video.videos import corrupt, cut, write_video

OPTIONS = [*MODEL_OPTIONS, *TRAIN_OPTIONS]


def _short_run(command: str, data: Path, model: Path, out: Path) -> list[object]:
    """A short run of `command` that reads `data`."""
    if command == "check":
        return [command, data]
    if command == "prepare":
        return [command, data, out]
    if command == "evaluate":
        return [command, model, data, "--out", out, "--workers", 0]
    arguments = [command, data, "--out", out, "--epochs", 1, *OPTIONS]
    if command == "train":
        arguments += ["--val-share", 0]
    return arguments


def _unstarted(command: str, data: Path, out: Path) -> list[object]:
    """`command` as it reads `data`, and ends there: so many folds are impossible, and a CPU has no fp16."""
    wrong = ["--folds", 99] if command == "crossval" else ["--device", "cpu", "--precision", "fp16"]
    return [command, data, "--out", out, *OPTIONS, *wrong]


def test_render_and_prepare_write_the_class_names(
    actdet_command: Actdet, rendered: Path, data: Path, tmp_path: Path
) -> None:
    assert (rendered / "classes.txt").read_text() == "fight\ncollapse\n"
    (data / "classes.txt").write_text("robbery\nvandalism\n")
    assert actdet_command("prepare", data, tmp_path / "small").code == 0
    assert (tmp_path / "small" / "classes.txt").read_text() == "robbery\nvandalism\n"
    assert "(4 robbery, 4 vandalism, 4 no action)" in actdet_command("check", tmp_path / "small").out


def test_train_takes_the_class_names_of_the_data_set(actdet_command: Actdet, data: Path, tmp_path: Path) -> None:
    (data / "classes.txt").write_text("robbery\nvandalism\nflood\n")
    outcome = actdet_command(*_short_run("train", data, tmp_path, tmp_path / "run"))
    assert outcome.code == 0, outcome.err
    assert read_info(tmp_path / "run" / "model.safetensors").model.class_names == ("robbery", "vandalism", "flood")


@pytest.mark.parametrize("names", [["fight", "collapse"], ["robbery"]], ids=str)
@pytest.mark.parametrize("command", ["check", "train", "crossval", "ablate", "prepare"])
def test_an_option_that_contradicts_the_data_set_is_refused(
    actdet_command: Actdet, data: Path, model: Path, tmp_path: Path, command: str, names: list[str]
) -> None:
    """Even if what is typed are the default names."""
    (data / "classes.txt").write_text("collapse\nfight\n")
    arguments = _short_run(command, data, model, tmp_path / "out")
    complaint = actdet_command(*arguments, "--class-names", *names).complaint()
    assert complaint.startswith(
        f"{data / 'classes.txt'}: the classes of this data set are 0 = collapse, 1 = fight, but"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("names", ["collapse\nfight\n", "fight\ncollapse\nfall\n", "a\nb\n"])
def test_a_model_that_contradicts_the_data_set_is_refused(
    actdet_command: Actdet, data: Path, model: Path, tmp_path: Path, names: str
) -> None:
    (data / "classes.txt").write_text(names)
    complaint = actdet_command("evaluate", model, data, "--out", tmp_path / "o").complaint()
    assert complaint.startswith(f"{data / 'classes.txt'}: ")
    assert complaint.endswith("0 = fight, 1 = collapse; both must list the same names in the same order")


def test_names_by_option_alone_are_advised_against(actdet_command: Actdet, data: Path) -> None:
    (data / "classes.txt").unlink()
    outcome = actdet_command("check", data, "--no-decode", "--class-names", "robbery", "vandalism")
    assert outcome.out.startswith(f"note: {data / 'classes.txt'}: no such file; ")
    assert "(4 robbery, 4 vandalism, 4 no action)" in outcome.out
    assert actdet_command("check", data, "--no-decode").out.startswith(f"{data}: 12 clips (4 fight, ")


@pytest.mark.parametrize("command", ["train", "evaluate", "prepare"])
def test_bad_files_are_left_out_and_listed(
    actdet_command: Actdet, data: Path, model: Path, tmp_path: Path, command: str
) -> None:
    """A cut video, an empty one, a bad line, and damage that only decoding finds, beside two good clips."""
    for video in sorted((data / "videos").iterdir())[2:]:
        video.unlink()
        (data / "annotations" / f"{video.stem}.txt").unlink()
    videos = [data / "videos" / f"extra_{kind}.mp4" for kind in ("cut", "empty", "line")]
    for video in videos:
        write_video(video, frames=9)
    cut(videos[0], 0.4)
    videos[1].write_bytes(b"")
    text = data / "annotations" / "extra_line.txt"
    text.write_text("0 1 2\n")
    noise = corrupt(write_video(data / "videos" / "extra_noise.mkv", "mjpeg"), range(1, 40))

    arguments = _short_run(command, data, model, tmp_path / "out")
    assert actdet_command(*arguments).complaint().startswith(f"{videos[0]}: ")

    outcome = actdet_command(*arguments, "--bad-files", "skip")
    assert outcome.code == 0, outcome.err
    listed = [line for line in outcome.out.splitlines() if line.startswith("left out: ")]
    for path, line in zip([*videos[:2], text, noise], listed, strict=True):
        assert line.startswith(f"left out: {path}:")
    if command == "evaluate":
        assert outcome.out.count("\n2 clips: ") == 1
        assert str(noise) in (tmp_path / "out" / "report.html").read_text()
    if command == "prepare":
        prepared = json.loads((tmp_path / "out" / "prepared.json").read_text())
        assert [f"left out: {problem}" for problem in prepared["left_out"]] == listed
        assert actdet_command("check", tmp_path / "out").code == 0


@pytest.mark.parametrize("command", ["crossval", "ablate"])
def test_experiments_leave_out_bad_files(actdet_command: Actdet, data: Path, tmp_path: Path, command: str) -> None:
    video = sorted((data / "videos").iterdir())[0]
    video.write_bytes(b"")
    arguments = _unstarted(command, data, tmp_path / "out")
    assert actdet_command(*arguments).complaint().startswith(f"{video}: is empty")
    expected = {"crossval": "only 7 clips of class collapse for 99 folds", "ablate": "precision fp16 needs a GPU"}
    for text in (data / "annotations").glob("fight*"):
        text.write_text("1" + text.read_text()[1:])
    assert expected[command] in actdet_command(*arguments, "--bad-files", "skip").complaint()


def test_stray_files_and_another_form_are_named(actdet_command: Actdet, data: Path, tmp_path: Path) -> None:
    for folder in ("videos", "annotations"):
        (data / folder / "Thumbs.db").write_bytes(b"\0")
    outcome = actdet_command(*_unstarted("train", data, tmp_path / "run"))
    notes = [f"note: {data / folder}: passed over Thumbs.db" for folder in ("videos", "annotations")]
    assert [line for line in outcome.out.splitlines() if line.startswith("note: ")] == notes

    for text in (data / "annotations").glob("*.txt"):
        if text.read_text():
            text.write_text("0 0.5 0.5 0.2 0.3\n")
    outcome = actdet_command("check", data, "--no-decode")
    assert outcome.complaint() == f"1 problem in {data}"
    assert outcome.out.startswith(f"{data / 'annotations'}: all 8 lines look like YOLO, ")


def test_check_and_train_ask_about_missing_annotation_files(actdet_command: Actdet, data: Path, tmp_path: Path) -> None:
    """A copy that lost most of them: all that is left of two classes are two clips."""
    texts = sorted((data / "annotations").iterdir())
    kept = [text for text in texts if text.stem.startswith(("fight", "collapse"))][2:6]
    for text in set(texts) - set(kept):
        text.unlink()
    note = f"note: {data / 'annotations'}: 8 of 12 clips have no annotation file"
    for arguments in (("check", data), _unstarted("train", data, tmp_path / "run")):
        outcome = actdet_command(*arguments)
        assert [line[: len(note)] for line in outcome.out.splitlines() if line.startswith("note: ")] == [note]
