"""Label Studio's JSON: regions with keyframes, spans, the ways it is exported, and files that are something else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actdet.data.formats.label_studio import read_label_studio, write_label_studio
from actdet.detections import Tube
from actdet.errors import DataError
from tests.actdet.data.formats.sources import facts, plain, tubes_of

VIDEO = "/data/upload/1/0a1b2c3d-door.mp4"


def keyframe(frame: int, x: float, enabled: bool = True, rotation: float = 0) -> dict[str, Any]:
    """A box of 10 x 20 percent, which is 32 x 48 pixels."""
    place = {"x": x, "y": 25, "width": 10, "height": 20, "rotation": rotation}
    return {"frame": frame, "enabled": enabled, "time": frame / 25} | place


def region(*keyframes: dict[str, Any], labels: tuple[str, ...] = ("fight",), **more: Any) -> dict[str, Any]:
    value = {"framesCount": 40, "duration": 1.6, "sequence": list(keyframes), "labels": list(labels)} | more
    return {"id": "r1", "from_name": "box", "to_name": "video", "type": "videorectangle", "value": value}


def task(*results: dict[str, Any], video: str = VIDEO) -> dict[str, Any]:
    annotation = {"id": 3, "was_cancelled": False, "ground_truth": False, "result": list(results)}
    return {"id": 1, "data": {"video": video}, "annotations": [annotation], "predictions": []}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "export.json"


def write(path: Path, *tasks: object) -> Path:
    path.write_text(json.dumps(tasks))
    return path


def corners(*lefts: float) -> list[list[float]]:
    """Pixels of boxes at these percent."""
    return [[round(3.2 * left, 3), 60, round(3.2 * left + 32, 3), 108] for left in lefts]


@pytest.mark.parametrize(
    ("keyframes", "frames", "lefts"),
    [
        # An enabled keyframe moves to the next one; one that is not is the last of a life.
        ([(1, 10, True), (5, 30, False)], [0, 1, 2, 3, 4], [10, 15, 20, 25, 30]),
        ([(5, 30, False), (1, 10, True)], [0, 1, 2, 3, 4], [10, 15, 20, 25, 30]),
        ([(1, 10, True), (3, 20, False), (7, 30, True), (9, 40, False)], [0, 1, 2, 6, 7, 8], [10, 15, 20, 30, 35, 40]),
        ([(2, 10, False), (5, 30, False)], [1, 4], [10, 30]),
        # One that is enabled at the end stays.
        ([(37, 10, True), (38, 20, True)], [36, 37, 38, 39], [10, 20, 20, 20]),
        ([(40, 10, True)], [39], [10]),
        # As exported with interpolated keyframes.
        ([(frame, 10 + frame, frame < 6) for frame in range(2, 7)], [1, 2, 3, 4, 5], [12, 13, 14, 15, 16]),
    ],
)
def test_keyframes_mean_what_the_editor_shows(
    path: Path, keyframes: list[tuple[int, float, bool]], frames: list[int], lefts: list[float]
) -> None:
    write(path, task(region(*(keyframe(*each) for each in keyframes))))
    assert tubes_of(read_label_studio(path, None), "/data") == [(0, frames, corners(*lefts))]


def test_a_turned_box_becomes_the_upright_one_around_it(path: Path) -> None:
    """The turn is about the corner at x, y: by a quarter, what was to the right of it is below it."""
    write(path, task(region(keyframe(40, 50, rotation=90))))
    assert tubes_of(read_label_studio(path, None), "/data") == [(0, [39], [[112, 60, 160, 92]])]


def test_frames_of_another_rate_are_found_by_their_time(path: Path) -> None:
    """Label Studio counts 25 frames a second, whatever the video has; this one has 10."""
    write(path, task(region(keyframe(1, 10), keyframe(26, 20, enabled=False), framesCount=100, duration=4.0)))
    (tube,) = tubes_of(read_label_studio(path, None), "/data", facts(frames=40, rate=10))
    assert tube[1] == list(range(11))
    assert tube[2] == corners(*range(10, 21))


def test_spans_of_a_timeline_are_tubes_without_boxes(path: Path) -> None:
    value = {"ranges": [{"start": 3, "end": 5}, {"start": 40, "end": 44}], "timelinelabels": ["fall", "fight"]}
    write(path, task({"id": "t", "type": "timelinelabels", "value": value}))
    source = read_label_studio(path, None)
    assert source.class_names == ("fall", "fight")
    assert tubes_of(source, "/data") == [(0, [2, 3, 4, 39], []), (1, [2, 3, 4, 39], [])]


def test_labels_may_be_choices_of_a_region(path: Path) -> None:
    choice = {"id": "r1", "type": "choices", "value": {"choices": ["fall"]}}
    write(path, task(choice, region(keyframe(40, 5), labels=()), {"id": "r2", "type": "textarea", "value": {}}))
    source = read_label_studio(path, None)
    assert tubes_of(source, "/data") == [(0, [39], corners(5))]
    assert source.class_names == ("fall",)


def test_classes_are_those_that_are_asked_for(path: Path) -> None:
    write(path, task(region(keyframe(40, 5), labels=("walk", "fight")), region(keyframe(40, 6), labels=())))
    source = read_label_studio(path, ["fall", "fight"])
    assert tubes_of(source, "/data") == [(1, [39], corners(5))]
    assert source.left_out.lines() == [
        "actions of class 'walk', which is not among the class names: 1 (first in /data/upload/1/0a1b2c3d-door.mp4)",
        f"regions without a label: 1 (first in {VIDEO})",
    ]


def test_one_annotation_of_each_task_is_taken(path: Path) -> None:
    both = task(region(keyframe(40, 1)))
    both["annotations"] += [
        {"was_cancelled": True, "ground_truth": True, "result": [region(keyframe(40, 2))]},
        {"ground_truth": True, "result": [region(keyframe(40, 3))]},
    ]
    nobody = task(video="b.mp4")
    nobody["annotations"] = []
    empty = task(video="c.mp4")
    write(path, both, nobody, empty, {"data": {"text": "no video"}})
    source = read_label_studio(path, None)
    assert tubes_of(source, "/data") == [(0, [39], corners(3))]
    assert tubes_of(source, "c.mp4") == []
    assert source.left_out.lines() == [
        f"annotations of a task beside the one that was taken: 1 (first in {VIDEO})",
        "tasks that nobody has annotated: 1 (first in b.mp4)",
        "tasks without a video: 1 (first in export.json)",
    ]


def test_the_short_form_of_the_export_means_the_same(path: Path) -> None:
    short = {"id": 1, "video": VIDEO, "box": [region(keyframe(40, 5))["value"]], "annotator": 1, "lead_time": 2.5}
    path.write_text(json.dumps([short]))
    assert tubes_of(read_label_studio(path, None), "/data") == [(0, [39], corners(5))]


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("/data/upload/1/0a1b2c3d-door.mp4", ("/data/upload/1/0a1b2c3d-door.mp4", "door.mp4")),
        ("/data/local-files/?d=yard/door%201.mp4", ("yard/door 1.mp4",)),
        ("https://host.example/x/door.MP4?signature=a/b", ("/x/door.MP4",)),
        ("s3://bucket/folder/door.mkv", ("/folder/door.mkv",)),
        ("door.webm", ("door.webm",)),
        ("http://[broken/door.mp4", ("http://[broken/door.mp4",)),
    ],
)
def test_the_name_of_a_video_is_found_in_its_address(path: Path, url: str, names: tuple[str, ...]) -> None:
    entry = task(video=url)
    entry["data"] = {"title": "a.b", **entry["data"]}
    write(path, entry)
    (video,) = read_label_studio(path, None).videos
    assert (video.name, *video.other_names) == names


def _with(**more: Any) -> dict[str, Any]:
    return task(region(keyframe(1, 1) | more))


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (lambda path: path, "file not found; expected an export of Label Studio"),
    "FIFO": (lambda path: os.mkfifo(path), "it is not a regular file"),
    "empty": (lambda path: path.touch(), "is not JSON ("),
    "binary": (lambda path: path.write_bytes(bytes(range(256))), "byte 128 is not UTF-8 text"),
    "deep": (lambda path: path.write_text("[" * 10**6), "has too many values inside of others"),
    "long number": (lambda path: path.write_text("1" * 10**5), "task number 0: it is not an object"),
    "twice": (lambda path: path.write_text('[{"id": 1, "id": 2}]'), "an object has two fields 'id'"),
    "number": (lambda path: path.write_text("[1]"), "task number 0: it is not an object"),
    "no list": (lambda path: write(path, task() | {"annotations": {}}), "annotations is not a list"),
    "no region": (lambda path: write(path, task(1)), "a region is not an object"),  # type: ignore[arg-type]
    "no frame": (lambda path: write(path, _with(frame=None)), "frame = None is not a finite number"),
    "negative": (lambda path: write(path, _with(frame=-1)), "frame = -1 is not a frame from 1 to 10000000"),
    "huge": (lambda path: write(path, _with(frame=10**30)), "frame = 1e+30 is beyond 1e+09"),
    "late": (lambda path: write(path, _with(frame=10**8)), "frame = 100000000 is not a frame from 1"),
    "text": (lambda path: write(path, _with(x="1")), "x = '1' is not a finite number"),
    "nan": (lambda path: write(path, _with(width=float("nan"))), "NaN is no number in JSON"),
    "beyond float64": (lambda path: write(path, _with(x=10**400)), "x = inf is not a finite number"),
    "digits": (lambda path: path.write_text(json.dumps([_with(x=7)]).replace("7", "1" * 5000)), "x = inf is not a"),
    "beyond float32": (lambda path: write(path, _with(y=-1e300)), "y = -1e+300 is beyond 1e+09"),
    "duration": (lambda path: write(path, task(region(duration=10**400))), "duration = inf is not a finite number"),
    "long text": (lambda path: write(path, _with(x="1" * 10**6)), "1111...1111"),
    "switch": (lambda path: write(path, _with(enabled="yes")), "enabled = 'yes' is neither true nor false"),
    "count": (lambda path: write(path, task(region(framesCount="40"))), "framesCount = '40' is not a finite number"),
}


@pytest.mark.parametrize(("make", "expected"), BAD_FILES.values(), ids=BAD_FILES)
def test_what_is_no_export_is_refused_in_one_line(path: Path, make: Callable[[Path], object], expected: str) -> None:
    make(path)
    with pytest.raises(DataError) as caught:
        read_label_studio(path, None)
    assert str(caught.value).startswith(f"{path}:")
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_a_keyframe_far_past_the_end_does_no_harm(path: Path) -> None:
    write(path, task(region(keyframe(38, 10), keyframe(10**6, 20), framesCount=0)))
    (tube,) = tubes_of(read_label_studio(path, None), "/data")
    assert tube[1][:3] == [37, 38, 39]


def test_what_is_written_is_read_again(path: Path) -> None:
    random = np.random.default_rng(0)
    lefts = random.uniform(0, 200, (25, 1)).astype(np.float32)
    boxes = np.hstack([lefts, lefts / 2, lefts + 40, lefts / 2 + 30])
    boxes[3:9] = boxes[3]
    frames = np.array([*range(5, 20), *range(24, 30), *range(35, 39)])
    tubes = [
        Tube(1, frames, boxes),
        Tube(0, np.array([7]), boxes[:1]),
        Tube(0, np.array([0, 1, 5, 6, 7, 39]), np.zeros((0, 4), np.float32)),
        Tube(1, np.array([38, 39]), boxes[:2]),
    ]
    write_label_studio(path, tubes, ["a", "b"], facts(), "door.mp4")
    assert tubes_of(read_label_studio(path, None), "door.mp4") == [plain(tube) for tube in tubes]
