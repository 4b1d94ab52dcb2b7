"""actdet predict with a detector that follows actors: their tubes, a row for each in the timeline, and whose files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actdet.errors import DataError
from actdet.pictures import Mark, class_color, draw, is_annotated, is_timeline
from actdet.prediction.actors import FoundTube
from actdet.prediction.predictor import Gap, Predictor, Window
from actdet.prediction.results import Job, describe_tube
from actdet.video.decoding import decode_frames
from actdet.video.info import probe
from tests.actdet.command import Actdet
from tests.actdet.prediction.followers import PARTS, answer_in_parts, save_follower
from tests.actdet.video.videos import corrupt, write_video


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _mark(x: float, label: str) -> Mark:
    """A box of 120 x 240 pixels in a picture of 480 x 480, of the first class."""
    return Mark((x / 480, 0.25, x / 480 + 0.25, 0.75), label, class_color(0))


@pytest.fixture
def follower(tiny_backbone: None, tmp_path: Path) -> Path:
    """A detector that finds two actors who fight, in windows of a second."""
    return save_follower(tmp_path / "follower.safetensors", 1.0)


@pytest.fixture
def yard(tmp_path: Path) -> Path:
    """A gray video of three seconds, which are five windows."""
    (tmp_path / "in").mkdir()
    gray = np.full((75, 480, 480, 3), 96, np.uint8)
    # No two windows look the same, or the network would not be asked again.
    gray[:, 0, :75, 0] = np.eye(75, dtype=np.uint8) * 90
    return write_video(tmp_path / "in" / "yard.mp4", frames=75, size=(480, 480), pictures=gray)


def test_predict_writes_tubes_a_timeline_and_an_annotated_video(
    actdet_command: Actdet, follower: Path, yard: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p"
    outcome = actdet_command("predict", follower, yard, "--out", out)
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in out.iterdir()) == ["yard.json", "yard.mp4", "yard.png", "yard.tubes.json"]

    # As docs/tubelet.md describes it.
    found = _json(out / "yard.tubes.json")
    assert list(found) == ["written_by", "video", "complete", "problem", "tubes"]
    assert found["written_by"] == "actdet predict, tubes"
    assert (found["video"], found["complete"], found["problem"]) == (str(yard), True, None)
    keys = ["actor", "action", "score", "start", "end", "first_frame", "boxes"]
    assert [list(tube) for tube in found["tubes"]] == [keys] * 2
    # The boxes are 0.25 x 0.5 of the picture, about 0.25 and 0.75 of its width.
    for number, (tube, left) in enumerate(zip(found["tubes"], (60.0, 300.0), strict=True), start=1):
        assert (tube["actor"], tube["action"], tube["first_frame"]) == (number, "fight", 0)
        assert (tube["start"], tube["end"]) == (0, pytest.approx(3.0))
        assert 0.9 < tube["score"] < 1
        np.testing.assert_allclose(tube["boxes"], [[left, 120.0, left + 120, 360.0]] * 75, atol=0.11)

    # Windows are told as ever, without the tracks that tubes are made of.
    whole = _json(out / "yard.json")
    assert whole["tubes"] == "yard.tubes.json"
    assert (whole["timeline"], whole["annotated"]) == ("yard.png", "yard.mp4")
    assert len(whole["windows"]) == 5
    assert all("tracks" not in window for window in whole["windows"])
    assert [len(window["actions"]) for window in whole["windows"]] == [2] * 5

    lines = [line for line in outcome.out.splitlines() if " actor " in line]
    scores = [f"{tube['score']:.2f}" for tube in found["tubes"]]
    assert lines == [f"yard.mp4     0.00 to    3.00 s  actor {n}: fight {scores[n - 1]}" for n in (1, 2)]

    assert is_timeline(out / "yard.png")
    assert is_annotated(out / "yard.mp4")
    with_numbers, without = (
        draw(np.full((480, 480, 3), 96, np.uint8), [_mark(60, first), _mark(300, second)]).astype(int)
        for first, second in (
            (f"1: fight {scores[0]}", f"2: fight {scores[1]}"),
            (f"fight {scores[0]}", f"fight {scores[1]}"),
        )
    )
    for frame in decode_frames(probe(out / "yard.mp4"), np.array([0, 40, 74])).astype(int):
        labels = frame[95:120]
        assert np.abs(labels - with_numbers[95:120]).mean() < np.abs(labels - without[95:120]).mean()
        for x in (60, 180, 300, 420):
            assert np.abs(frame[240, x - 3 : x + 4] - 96).max() > 40, x
        assert np.abs(frame[240, 240] - 96).max() < 12


def test_without_actors_there_are_no_tubes(actdet_command: Actdet, follower: Path, yard: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    outcome = actdet_command("predict", follower, yard, "--out", out, "--threshold", 1, "--no-annotate")
    assert outcome.code == 0, outcome.err
    assert _json(out / "yard.tubes.json")["tubes"] == []
    assert is_timeline(out / "yard.png")
    assert " actor " not in outcome.out


def test_a_detector_of_whole_clips_writes_none_and_removes_its_forerunners(
    actdet_command: Actdet, follower: Path, model: Path, yard: Path, tmp_path: Path
) -> None:
    """Those of an earlier detector are of another result."""
    out = tmp_path / "p"
    assert actdet_command("predict", follower, yard, "--out", out, "--no-annotate").code == 0
    assert (out / "yard.tubes.json").exists()
    outcome = actdet_command("predict", model, yard, "--out", out, "--no-annotate")
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in out.iterdir()) == ["yard.json", "yard.png"]
    assert _json(out / "yard.json")["tubes"] is None

    # And back again.
    assert actdet_command("predict", follower, yard, "--out", out, "--no-annotate").code == 0
    assert len(_json(out / "yard.tubes.json")["tubes"]) == 2


@pytest.mark.parametrize(
    ("kind", "detector"),
    [("json", "tubelet"), ("json", "detr"), ("text", "detr"), ("folder", "tubelet"), ("dangling", "tubelet")],
)
def test_what_others_call_tubes_is_not_replaced(
    actdet_command: Actdet, follower: Path, model: Path, yard: Path, tmp_path: Path, kind: str, detector: str
) -> None:
    target = yard.parent / "yard.tubes.json"
    if kind == "folder":
        target.mkdir()
    elif kind == "dangling":
        target.symlink_to(tmp_path / "elsewhere")
    else:
        target.write_text("mine" if kind == "text" else '{"video": "yard.mp4", "tubes": []}')
    before = target.read_text() if target.is_file() else None
    checkpoint = follower if detector == "tubelet" else model
    complaint = actdet_command("predict", checkpoint, yard, "--out", yard.parent, "--no-annotate").complaint()
    assert complaint == (
        f"{target}: was not written by actdet predict and would be replaced; move it or choose another --out"
    )
    assert (target.read_text() if target.is_file() else None) == before
    assert sorted(path.name for path in yard.parent.iterdir()) == ["yard.mp4", "yard.tubes.json"]


def test_behind_damage_there_are_new_actors(actdet_command: Actdet, follower: Path, tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv", "mjpeg", frames=150, size=(64, 48))
    corrupt(path, range(60, 90))
    outcome = actdet_command("predict", follower, path, "--out", tmp_path / "p", "--no-annotate")
    assert outcome.code == 1
    found = _json(tmp_path / "p" / "v.tubes.json")
    assert not found["complete"]
    assert "is damaged" in found["problem"]
    assert [tube["actor"] for tube in found["tubes"]] == [1, 2, 3, 4]
    assert max(tube["end"] for tube in found["tubes"][:2]) <= 2.4
    assert min(tube["start"] for tube in found["tubes"][2:]) >= 3.6


@pytest.mark.parametrize(
    ("error", "code", "problem"),
    [(KeyboardInterrupt(), 130, "it was stopped"), (DataError("v", "is gone"), 1, "v: is gone")],
    ids=lambda value: type(value).__name__,
)
def test_a_run_that_is_stopped_keeps_the_tubes_so_far(
    actdet_command: Actdet,
    follower: Path,
    yard: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    problem: str,
) -> None:
    real = Predictor.findings

    def findings(self: Predictor, video: Any) -> Iterator[Window | Gap]:
        found = real(self, video)
        yield next(found)
        yield next(found)
        raise error

    monkeypatch.setattr(Predictor, "findings", findings)
    assert actdet_command("predict", follower, yard, "--out", tmp_path / "p").code == code
    found = _json(tmp_path / "p" / "yard.tubes.json")
    assert (found["complete"], found["problem"]) == (False, problem)
    assert [(tube["actor"], tube["start"], tube["end"]) for tube in found["tubes"]] == [
        (1, 0, pytest.approx(1.52, abs=0.05)),
        (2, 0, pytest.approx(1.52, abs=0.05)),
    ]


def test_who_has_left_is_on_the_disk_while_the_video_goes_on(
    actdet_command: Actdet, follower: Path, yard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the third window nobody is there, so that both actors have ended."""
    monkeypatch.setattr("actdet.prediction.results._MOST_WRITING", 0)
    real = Predictor.findings
    stored = []

    def findings(self: Predictor, video: Any) -> Iterator[Window | Gap]:
        for number, found in enumerate(real(self, video)):
            assert isinstance(found, Window)
            (tracks,) = found.tracks
            if number == 2:
                object.__setattr__(found, "tracks", (tracks.take([]),))
            yield found
            tubes = _json(tmp_path / "p" / "yard.tubes.json")
            assert not tubes["complete"]
            stored.append([tube["actor"] for tube in tubes["tubes"]])

    monkeypatch.setattr(Predictor, "findings", findings)
    assert actdet_command("predict", follower, yard, "--out", tmp_path / "p", "--no-annotate").code == 0
    assert stored == [[], [], [1, 2], [1, 2], [1, 2]]
    found = _json(tmp_path / "p" / "yard.tubes.json")
    assert found["complete"]
    assert [tube["actor"] for tube in found["tubes"]] == [1, 2, 3, 4]


def test_a_detector_that_answers_in_parts_is_told_as_any_other(
    actdet_command: Actdet, tiny_backbone: None, yard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that is found in its videos is written in the same way."""
    # Of a probability of 1 every mean is 1, without any rounding.
    follower = save_follower(tmp_path / "sure.safetensors", 1.0, odds=40.0)
    options = ["predict", follower, yard, "--no-annotate", "--out"]
    assert actdet_command(*options, tmp_path / "whole").code == 0
    answer_in_parts(monkeypatch, PARTS["overlap"])
    assert actdet_command(*options, tmp_path / "parts").code == 0
    for name in ("yard.json", "yard.tubes.json"):
        assert _json(tmp_path / "parts" / name) == _json(tmp_path / "whole" / name)


def test_what_an_actor_does_is_one_line() -> None:
    job = Job(Path("v.mp4"), "v.mp4", Path("v.json"), Path("v.tubes.json"), Path("o.png"), Path("o.mp4"))
    tube = FoundTube(12, "collapse", 0.876, 1.5, 12.25, 37, np.zeros((3, 4), np.float32))
    assert describe_tube(job, tube) == "v.mp4     1.50 to   12.25 s  actor 12: collapse 0.88"


def test_the_tubes_of_a_video_do_not_replace_the_result_of_another(
    actdet_command: Actdet, model: Path, door: Path, tmp_path: Path
) -> None:
    """The windows of door.tubes.webm are in door.tubes.json."""
    other = shutil.copy(door, door.with_name("door.tubes.webm"))
    out = tmp_path / "o"
    assert actdet_command("predict", model, other, "--out", out, "--no-annotate").code == 0
    before = (out / "door.tubes.json").read_bytes()
    complaint = actdet_command("predict", model, door, "--out", out, "--no-annotate").complaint()
    assert complaint.startswith(f"{out / 'door.tubes.json'}: was not written by actdet predict and would be replaced")
    assert (out / "door.tubes.json").read_bytes() == before
