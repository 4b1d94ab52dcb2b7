"""A data set that cannot be used is named in one line, with what would be right, and nothing is begun."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.actdet.command import Actdet
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS
from tests.actdet.video.videos import cut, write_sound

OPTIONS = [*MODEL_OPTIONS, *TRAIN_OPTIONS]


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
        (lambda data: shutil.rmtree(data / "videos"), ["train"], "/videos: ", "folder not found"),
        (lambda data: shutil.rmtree(data / "annotations"), ["train"], "/annotations: ", "folder not found"),
        (_annotate_nobody, ["train"], "/annotations/nobody.txt: ", "no video of this name"),
        (_no_positive, ["train"], "/annotations: ", "none of the 12 clips has an action"),
        (_no_positive, ["train", "--val-share", 0], "/annotations: ", "none of the 12 clips has an action"),
        (_one_collapse, ["train"], ": ", "only 1 clip of class collapse"),
        (_one_collapse, ["crossval", "--folds", 2], ": ", "only 1 clip of class collapse for 2 folds: add clips"),
        (lambda data: None, ["crossval"], ": ", "only 4 clips of class fight for 5 folds"),
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
    assert complaint.startswith(f"{data}{beginning}")
    assert word in complaint


def test_the_advice_for_too_many_folds_works(actdet_command: Actdet, rendered: Path, tmp_path: Path) -> None:
    arguments = ("crossval", rendered, "--epochs", 1, "--out", tmp_path / "o", *OPTIONS)
    assert "use --folds 4 or fewer" in actdet_command(*arguments).complaint()
    assert actdet_command(*arguments, "--folds", 4).code == 0


def test_more_actions_than_queries_are_refused(actdet_command: Actdet, data: Path, tmp_path: Path) -> None:
    text = sorted((data / "annotations").iterdir())[0]
    text.write_text("0 1 2 30 40\n" * 4)
    outcome = actdet_command("train", data, "--queries", 3, "--out", tmp_path / "o", *OPTIONS)
    assert text.stem in outcome.complaint()
    assert "--queries 4" in outcome.complaint()
