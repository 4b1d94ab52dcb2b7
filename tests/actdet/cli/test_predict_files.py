"""actdet predict replaces nobody's files, and takes folders and any names."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from actdet.files import is_temporary, replacing, sole_writer_of, temporary_name
from actdet.pictures import is_annotated, is_timeline
from tests.actdet.command import Actdet
from tests.actdet.video.videos import write_video


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


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
    assert outcome.complaint().startswith(f"{target}: was not written by actdet predict")
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


@pytest.mark.parametrize("place", [".", "link"])
def test_predict_replaces_none_of_its_videos(
    actdet_command: Actdet, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    door = write_video(tmp_path / "door.mp4", frames=9)
    yard = write_video(tmp_path / "yard.mkv", frames=9)
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = door.read_bytes()

    outcome = actdet_command("predict", model, yard, door, "--out", place)
    assert outcome.complaint().startswith(f"{Path(place, 'door.mp4')}: is one of the videos")
    assert outcome.out == ""

    assert actdet_command("predict", model, "door.mp4", "--out", place, "--no-annotate").code == 0
    assert actdet_command("predict", model, yard, "--out", place).code == 0
    assert door.read_bytes() == before
    assert (tmp_path / "yard.mp4").is_file()


@pytest.mark.parametrize("kind", ["a file", "in a file", "refused"])
def test_a_folder_that_cannot_be_written_to_is_said_once_and_first(
    actdet_command: Actdet, door: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "file").write_text("mine")
    places = {
        "a file": tmp_path / "file",
        "in a file": tmp_path / "file" / "o",
        "refused": Path("/proc/nothing/here"),
    }
    out = places[kind]

    outcome = actdet_command("predict", tmp_path / "no model", door, door.with_name("b.mp4"), "--out", out)
    assert outcome.complaint().startswith(f"{out}: ")
    assert "choose another --out" in outcome.complaint()
    assert (tmp_path / "file").read_text() == "mine"


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
    assert complaint.startswith(f"{tmp_path / 'empty'}: contains no videos")
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("stem", ["x" * 251, "\u00e9" * 125, "\u4eba" * 83, "x" * 240])
def test_names_as_long_as_a_file_system_takes(
    actdet_command: Actdet, model: Path, door: Path, tmp_path: Path, stem: str
) -> None:
    videos = [shutil.copy(door, door.with_name(f"{stem}.mkv"))]
    # Another one differs only in what is cut off.
    if len(stem) == 251:
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


def test_a_result_that_another_process_writes_is_left_to_it(actdet_command: Actdet, model: Path, door: Path) -> None:
    """The results of other videos may go to the same folder at the same time."""
    _copies(door, door.parent, "yard.webm")
    out = door.parent / "found"
    out.mkdir()
    with sole_writer_of(out / "door.json"):
        outcome = actdet_command("predict", model, door.parent, "--out", out, "--no-annotate")
    assert outcome.code == 1
    assert outcome.complaints == [
        f"actdet: {out / 'door.json'}: another actdet process is writing there: wait until it ends, or choose another "
        "folder",
        "actdet: 1 of 2 videos were not looked at whole",
    ]
    assert sorted(os.listdir(out)) == ["yard.json", "yard.png"]


def test_what_a_killed_run_left_goes(actdet_command: Actdet, model: Path, door: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    out.mkdir()
    for name in (".door.{}.partial.mp4", ".door.{}.partial.json", ".other.{}.partial.mp4"):
        (out / name.format(2**22 + 1)).write_bytes(b"half")
    (out / ".door.json.actdet-lock").touch()
    assert actdet_command("predict", model, door, "--out", out, "--no-annotate").code == 0
    assert sorted(os.listdir(out)) == ["door.json", "door.png"]
