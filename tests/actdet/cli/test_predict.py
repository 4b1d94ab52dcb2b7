"""actdet predict tells what it finds as it finds it, keeps it whatever happens, and names the videos that are bad."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from actdet import pictures as drawing
from actdet.errors import DataError
from actdet.models.checkpoints import read_info
from actdet.pictures import CUT, is_annotated
from actdet.prediction.predictor import FoundAction, Gap, Predictor, Window
from actdet.prediction.results import Job, describe
from tests.actdet.command import Actdet, small_disk
from tests.actdet.video.videos import corrupt, write_sound, write_video


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_predict_writes_windows_and_videos(actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path) -> None:
    clip = sorted((rendered / "videos").iterdir())[0]
    outcome = actdet_command("predict", model, clip, "--out", tmp_path / "p", "--threshold", 0)
    assert outcome.code == 0, outcome.err
    (line,) = (line for line in outcome.out.splitlines() if line.startswith(clip.name))
    (window,) = _json(tmp_path / "p" / f"{clip.stem}.json")["windows"]
    assert f"{window['action']}" in line
    assert f"{window['score']:.2f}" in line
    assert len(window["box"]) == 4

    with av.open(str(tmp_path / "p" / f"{clip.stem}.mp4")) as drawn, av.open(str(clip)) as source:
        assert sum(1 for _ in drawn.decode(video=0)) == sum(1 for _ in source.decode(video=0))


def test_predict_goes_on_after_a_broken_video(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path
) -> None:
    good = sorted((rendered / "videos").iterdir())[0]
    bad = tmp_path / "bad.webm"
    bad.write_bytes(b"nothing")
    outcome = actdet_command("predict", model, bad, good, "--out", tmp_path / "p", "--no-annotate")
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    first, second = outcome.complaints
    assert first.startswith(f"actdet: {bad}: ")
    assert second == "actdet: 1 of 2 videos were not looked at whole"
    assert {path.name for path in (tmp_path / "p").iterdir()} == {f"{good.stem}.json", f"{good.stem}.png"}


def test_predict_prints_windows_as_they_are_found(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = sorted((rendered / "videos").iterdir())[0]
    found = []
    printed = []

    def findings(self: Predictor, video: object) -> Iterator[Window]:
        for number in range(3):
            found.append(Window(float(number), number + 2.0, None, 0.25, None))
            yield found[-1]
            printed.append(sys.stdout.getvalue().splitlines())  # pyright: ignore[reportAttributeAccessIssue]

    monkeypatch.setattr(Predictor, "findings", findings)
    outcome = actdet_command("predict", model, clip, "--out", tmp_path / "p", "--no-annotate")
    assert outcome.code == 0, outcome.err

    lines = [f"{clip.name}  {n:7.2f} to {n + 2:7.2f} s  no action    0.25" for n in range(3)]
    assert printed == [lines[:1], lines[:2], lines]
    assert outcome.out.splitlines() == [*lines, f"results: {tmp_path / 'p'}"]
    assert _json(tmp_path / "p" / f"{clip.stem}.json")["windows"] == [
        {name: [] if name == "actions" else value for name, value in asdict(w).items() if name != "tracks"}
        for w in found
    ]


@pytest.mark.parametrize("name", ["gone.mp4", "sound.m4a", "text.mp4", "empty.mp4"])
def test_predict_names_a_bad_video(actdet_command: Actdet, model: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "sound.m4a":
        write_sound(path)
    elif name == "text.mp4":
        path.write_text("text")
    elif name == "empty.mp4":
        path.touch()

    outcome = actdet_command("predict", model, path, "--out", tmp_path / "o")
    assert outcome.code == 1
    assert outcome.complaints[0].startswith(f"actdet: {path}: ")
    assert "Traceback" not in outcome.err
    # There are no results to point at.
    assert outcome.out == ""


def test_predict_refuses_no_video(actdet_command: Actdet, model: Path) -> None:
    assert "no video given" in actdet_command("predict", model).complaint()


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
    seconds = read_info(model).clip_seconds
    frames = round(25 * seconds * 5)
    path = write_video(tmp_path / "v.mkv", "mjpeg", frames=frames, size=(64, 64))
    first = frames * 3 // 5
    corrupt(path, range(first, first + 12))

    flags = [] if annotate else ["--no-annotate"]
    outcome = actdet_command("predict", model, path, "--out", tmp_path / "p", *flags)
    assert outcome.code == 1
    assert [line.split(": ")[1] for line in outcome.complaints] == [str(path), "1 of 1 videos were not looked at whole"]
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


def test_a_disk_that_fills_ends_the_run(actdet_command: Actdet, model: Path, door: Path, tmp_path: Path) -> None:
    other = shutil.copy(door, door.with_name("b.webm"))
    with small_disk(100):
        outcome = actdet_command("predict", model, door, other, "--out", tmp_path / "p")
    assert outcome.complaint().startswith(f"{tmp_path / 'p' / 'door.json'}: cannot be written: ")


def test_a_window_is_one_line_however_many_actions_it_has() -> None:
    job = Job(Path("v.mp4"), "v.mp4", Path("v.json"), Path("v.tubes.json"), Path("o.png"), Path("o.mp4"))
    found = (FoundAction("fight", 0.9, (1.0, 2.0, 3.0, 4.0)), FoundAction("collapse", 0.6, (5.0, 6.0, 7.0, 8.0)))
    line = describe(job, Window(0.0, 2.0, "fight", 0.9, found[0].box, found))
    assert line == (
        "v.mp4     0.00 to    2.00 s  fight        0.90  box (1.0, 2.0, 3.0, 4.0); "
        "collapse     0.60  box (5.0, 6.0, 7.0, 8.0)"
    )
    assert describe(job, Gap(1.0, 9.5, damaged=False)) == "v.mp4     1.00 to    9.50 s  not looked at: no frames"


@pytest.mark.parametrize("other", [(230, 230, 230), (20, 60, 20)], ids=["an empty wall", "at night"])
def test_a_cut_to_another_scene_is_told_wherever_a_score_is(
    actdet_command: Actdet, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: tuple[int, int, int]
) -> None:
    """In the line, in the JSON, in the timeline and in the annotated video; and only where the cut is."""
    seconds = read_info(model).clip_seconds
    frames = round(25 * seconds * 4)
    pictures = np.full((frames, 48, 64, 3), 120, np.uint8)
    pictures[frames * 3 // 4 :] = other
    path = write_video(tmp_path / "v.mkv", "mjpeg", frames=frames, pictures=pictures)

    given: list[list[bool]] = []
    drawn: list[bool] = []
    plot = drawing.timeline
    paint = drawing.draw
    monkeypatch.setattr(
        drawing,
        "timeline",
        lambda windows, *rest: given.append([window.cut for window in windows]) or plot(windows, *rest),
    )
    monkeypatch.setattr(
        drawing,
        "draw",
        lambda picture, marks, **rest: drawn.append(CUT in marks) or paint(picture, marks, **rest),
    )
    outcome = actdet_command("predict", model, path, "--out", tmp_path / "p", "--threshold", 0)
    assert outcome.code == 0, outcome.err

    windows = _json(tmp_path / "p" / "v.json")["windows"]
    cuts = [window["start"] < 3 * seconds - 0.1 < 3 * seconds + 0.1 < window["end"] for window in windows]
    assert 0 < sum(cuts) < len(cuts)
    assert [window["cut"] for window in windows] == cuts
    lines = [line for line in outcome.out.splitlines() if line.startswith("v.mkv")]
    assert ["not reliable: the window has a cut to another scene" in line for line in lines] == cuts
    assert given == [cuts]
    assert len(drawn) == frames
    assert drawn[frames * 3 // 4]
    assert not any(drawn[: frames // 2])


@pytest.mark.parametrize("leap", [30, 86_400, 1_690_000_000], ids=["30 s", "a day", "from 1970 to 2023"])
def test_a_leap_of_the_clock_is_a_gap_in_the_result(
    actdet_command: Actdet, model: Path, tmp_path: Path, leap: int
) -> None:
    pts = [40 * number + 1000 * leap * (number >= 40) for number in range(80)]
    path = write_video(tmp_path / "v.mkv", frames=80, pts=pts)
    outcome = actdet_command("predict", model, path, "--out", tmp_path / "p", "--no-annotate")
    assert outcome.code == 0, outcome.err
    assert "not looked at: no frames" in outcome.out

    found = _json(tmp_path / "p" / "v.json")
    (gap,) = found["gaps"]
    assert gap == {"start": pytest.approx(1.6), "end": pytest.approx(1.6 + leap), "damaged": False}
    assert found["complete"]
    assert len(found["windows"]) < 20
    assert not any(window["start"] < gap["end"] and window["end"] > gap["start"] for window in found["windows"])
