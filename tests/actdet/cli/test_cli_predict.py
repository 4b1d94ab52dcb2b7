"""`actdet predict` keeps what it finds, replaces nobody's files, and takes folders and any names."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from actdet.errors import DataError
from actdet.files import is_temporary, replacing, temporary_name
from actdet.models.checkpoints import read_about
from actdet.pictures import is_annotated, is_timeline
from actdet.prediction.predictor import FoundAction, Gap, Predictor, Window
from actdet.prediction.results import Job, describe
from tests.actdet.command import Actdet, small_disk
from tests.actdet.video.videos import corrupt, write_video


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.fixture
def door(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return write_video(tmp_path / "in" / "door.webm", "libvpx-vp9", frames=9)


@pytest.mark.parametrize("theirs", ["door.mp4", "door.json", "door.png"])
@pytest.mark.parametrize("kind", ["video", "picture", "text", "empty", "json", "folder", "link", "dangling"])
def test_what_others_wrote_is_not_replaced(
    actdet_command: Actdet, model: Path, door: Path, tmp_path: Path, theirs: str, kind: str
) -> None:
    target = door.parent / theirs
    content = {"text": b"mine", "empty": b"", "json": b'{"video": "door.webm", "windows": []}'}
    if kind == "video":
        shutil.move(write_video(tmp_path / "other.mp4", frames=3), target)
    elif kind == "picture":
        Image.new("RGB", (8, 8)).save(target, "PNG")
    elif kind == "folder":
        target.mkdir()
    elif kind in ("link", "dangling"):
        target.symlink_to(tmp_path / "elsewhere")
        if kind == "link":
            (tmp_path / "elsewhere").write_bytes(b"mine")
    else:
        target.write_bytes(content[kind])
    before = target.read_bytes() if target.is_file() else None

    outcome = actdet_command("predict", model, door, "--out", door.parent)
    assert outcome.complaint().startswith(f"{target}: is no result of actdet predict")
    assert outcome.out == ""
    assert os.path.lexists(target)
    assert (target.read_bytes() if target.is_file() else None) == before
    assert sorted(path.name for path in door.parent.iterdir()) == sorted(["door.webm", theirs])


def test_its_own_results_are_replaced(actdet_command: Actdet, model: Path, door: Path) -> None:
    for _ in range(2):
        outcome = actdet_command("predict", model, door, "--out", door.parent)
        assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in door.parent.iterdir()) == [
        "door.json",
        "door.mp4",
        "door.png",
        "door.webm",
    ]
    assert is_annotated(door.parent / "door.mp4")
    assert is_timeline(door.parent / "door.png")
    assert not is_annotated(door)
    found = _json(door.parent / "door.json")
    assert (found["complete"], found["problem"]) == (True, None)
    assert (found["timeline"], found["annotated"]) == ("door.png", "door.mp4")
    assert found["until"] == found["seconds"] == pytest.approx(9 / 25, abs=0.01)


def test_results_are_on_the_disk_as_they_are_found(
    actdet_command: Actdet, model: Path, door: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actdet.prediction.results._MOST_WRITING", 0)
    stored = []

    def findings(self: Predictor, video: object) -> Iterator[Window | Gap]:
        for number in range(3):
            yield Window(float(number), number + 2.0, None, 0.25, None)
            stored.append(_json(tmp_path / "p" / "door.json"))

    monkeypatch.setattr(Predictor, "findings", findings)
    assert actdet_command("predict", model, door, "--out", tmp_path / "p", "--no-annotate").code == 0
    assert [len(found["windows"]) for found in stored] == [1, 2, 3]
    assert [found["until"] for found in stored] == [2, 3, 4]
    assert not any(found["complete"] for found in stored)
    assert _json(tmp_path / "p" / "door.json")["complete"]


@pytest.mark.parametrize(
    ("error", "code", "problem"),
    [
        (KeyboardInterrupt(), 130, "it was stopped"),
        (DataError("v", "is gone"), 1, "v: is gone"),
        (MemoryError(), 1, "it was stopped"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_file_that_fails_or_is_stopped_keeps_its_windows(
    actdet_command: Actdet,
    model: Path,
    door: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    problem: str,
) -> None:
    def findings(self: Predictor, video: object) -> Iterator[Window | Gap]:
        yield Window(0.0, 2.0, None, 0.25, None)
        yield Window(1.0, 3.0, None, 0.25, None)
        raise error

    monkeypatch.setattr(Predictor, "findings", findings)
    assert actdet_command("predict", model, door, "--out", tmp_path / "p").code == code
    found = _json(tmp_path / "p" / "door.json")
    assert (len(found["windows"]), found["until"]) == (2, 3)
    assert (found["complete"], found["problem"]) == (False, problem)
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["door.json"]


@pytest.mark.parametrize("annotate", [True, False])
def test_damage_is_a_gap_in_the_result_and_in_the_exit_status(
    actdet_command: Actdet, model: Path, tmp_path: Path, annotate: bool
) -> None:
    seconds = read_about(model).clip_seconds
    frames = round(25 * seconds * 5)
    path = write_video(tmp_path / "v.mkv", "mjpeg", frames=frames, size=(64, 64))
    first = frames * 3 // 5
    corrupt(path, range(first, first + 12))
    flags = [] if annotate else ["--no-annotate"]
    outcome = actdet_command("predict", model, path, "--out", tmp_path / "p", *flags)
    assert outcome.code == 1
    assert [line.split(": ")[1] for line in outcome.complaints] == [str(path), "1 of 1 videos could not be read whole"]
    assert "not looked at: damaged" in outcome.out
    found = _json(tmp_path / "p" / "v.json")
    (gap,) = found["gaps"]
    assert gap["damaged"]
    assert gap["start"] <= first / 25
    assert gap["end"] >= (first + 12) / 25 - 1e-3
    assert found["windows"][-1]["end"] == pytest.approx(frames / 25)
    assert found["windows"][0]["start"] == 0
    assert not found["complete"]
    assert "is damaged" in found["problem"]
    assert is_annotated(tmp_path / "p" / "v.mp4") == annotate


def test_all_actions_of_a_window_are_told(actdet_command: Actdet, model: Path, door: Path, tmp_path: Path) -> None:
    outcome = actdet_command("predict", model, door, "--out", tmp_path / "p", "--threshold", 0, "--no-annotate")
    assert outcome.code == 0, outcome.err
    (window,) = _json(tmp_path / "p" / "door.json")["windows"]
    scores = [found["score"] for found in window["actions"]]
    assert scores == sorted(scores, reverse=True)
    assert {found["action"] for found in window["actions"]} == {"fight", "collapse"}
    assert {key: window[key] for key in ("action", "score", "box")} == window["actions"][0]
    (line,) = (line for line in outcome.out.splitlines() if line.startswith(door.name))
    for found in window["actions"]:
        x1, y1, x2, y2 = found["box"]
        assert f"{found['action']:12} {found['score']:.2f}  box ({x1}, {y1}, {x2}, {y2})" in line


@pytest.mark.parametrize("kind", ["a file", "in a file", "refused"])
def test_a_folder_that_cannot_be_written_to_is_said_once_and_first(
    actdet_command: Actdet, door: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "file").write_text("mine")
    out = {"a file": tmp_path / "file", "in a file": tmp_path / "file" / "o", "refused": Path("/proc/nothing/here")}[
        kind
    ]
    outcome = actdet_command("predict", tmp_path / "no model", door, door.with_name("b.mp4"), "--out", out)
    assert outcome.complaint().startswith(f"{out}: ")
    assert "give another --out" in outcome.complaint()
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_fills_ends_the_run(actdet_command: Actdet, model: Path, door: Path, tmp_path: Path) -> None:
    other = shutil.copy(door, door.with_name("b.webm"))
    with small_disk(100):
        outcome = actdet_command("predict", model, door, other, "--out", tmp_path / "p")
    assert outcome.complaint().startswith(f"{tmp_path / 'p' / 'door.json'}: cannot be written: ")


def _copies(door: Path, folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(door, folder / name)


@pytest.mark.parametrize(
    ("given", "results"),
    [
        (["a"], ["deep/w.json", "v.json"]),
        (["a/v.webm", "b/v.webm"], ["a/v.json", "b/v.json"]),
        (["a", "b"], ["a/deep/w.json", "a/v.json", "b/v.json"]),
        (["c/v.mkv", "c/v.webm"], ["v.mkv.json", "v.webm.json"]),
        (["a/v.webm", "a/v.webm", "a"], ["deep/w.json", "v.json"]),
        (["a/v.webm", "b/v.webm", "c/v.mkv"], ["a/v.json", "b/v.json", "c/v.json"]),
    ],
    ids=str,
)
def test_folders_and_names_that_are_the_same(
    actdet_command: Actdet, model: Path, door: Path, tmp_path: Path, given: list[str], results: list[str]
) -> None:
    _copies(door, tmp_path, "a/v.webm", "a/deep/w.webm", "b/v.webm", "c/v.mkv", "c/v.webm", "a/.hidden/x.webm")
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"no video")
    videos = [tmp_path / name for name in given]
    outcome = actdet_command("predict", model, *videos, "--out", tmp_path / "p", "--no-annotate")
    assert outcome.code == 0, outcome.err
    written = [path for path in (tmp_path / "p").rglob("*") if path.is_file()]
    timelines = [str(Path(name).with_suffix("")) + ".png" for name in results]
    assert {str(path.relative_to(tmp_path / "p")) for path in written} == {*results, *timelines}


def test_a_folder_gives_its_videos_again_and_not_their_results(actdet_command: Actdet, model: Path, door: Path) -> None:
    for _ in range(2):
        assert actdet_command("predict", model, door.parent, "--out", door.parent / "found").code == 0
    assert sorted(path.name for path in (door.parent / "found").iterdir()) == ["door.json", "door.mp4", "door.png"]


def test_a_folder_without_videos_is_named(actdet_command: Actdet, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("none")
    complaint = actdet_command("predict", model, tmp_path / "empty", "--out", tmp_path / "p").complaint()
    assert complaint.startswith(f"{tmp_path / 'empty'}: holds no video")
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("stem", ["x" * 251, "\u00e9" * 125, "\u4eba" * 83, "x" * 240])
def test_names_as_long_as_a_file_system_takes(
    actdet_command: Actdet, model: Path, door: Path, tmp_path: Path, stem: str
) -> None:
    videos = [shutil.copy(door, door.with_name(f"{stem}.mkv"))]
    if len(stem) == 251:  # one that differs in what is cut off
        videos.append(shutil.copy(door, door.with_name(f"{stem[:-1]}y.mkv")))
    outcome = actdet_command("predict", model, *videos, "--out", tmp_path / "p")
    assert outcome.code == 0, outcome.err
    results = sorted((tmp_path / "p").iterdir())
    assert len(results) == 3 * len(videos)
    assert {_json(path)["video"] for path in results if path.suffix == ".json"} == {str(path) for path in videos}


@pytest.mark.parametrize("name", ["x" * 250 + ".json", "\u4eba" * 83 + ".mp4", "short.json", "y" * 255])
def test_a_temporary_name_is_no_longer_than_names_may_be(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert len(os.fsencode(temporary_name(path))) <= 255
    assert is_temporary(path.with_name(temporary_name(path)))
    assert temporary_name(path) != temporary_name(path.with_name(f"z{name[1:]}"))
    with replacing(path) as temporary:
        temporary.write_text("all")
    assert path.read_text() == "all"
    assert os.listdir(tmp_path) == [name]


def test_a_window_is_one_line_however_many_actions_it_has() -> None:
    job = Job(Path("v.mp4"), "v.mp4", Path("v.json"), Path("o.png"), Path("o.mp4"))
    found = (FoundAction("fight", 0.9, (1.0, 2.0, 3.0, 4.0)), FoundAction("collapse", 0.6, (5.0, 6.0, 7.0, 8.0)))
    line = describe(job, Window(0.0, 2.0, "fight", 0.9, found[0].box, found))
    assert line == (
        "v.mp4     0.00 to    2.00 s  fight        0.90  box (1.0, 2.0, 3.0, 4.0); "
        "collapse     0.60  box (5.0, 6.0, 7.0, 8.0)"
    )
    assert describe(job, Gap(1.0, 9.5, damaged=False)) == "v.mp4     1.00 to    9.50 s  not looked at: no frames"
