"""CVAT's XML: tracks with all their boxes or with keyframes only, and files that are something else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from actdet.data.formats.cvat import read_cvat, write_cvat
from actdet.data.formats.source import UnusableError
from actdet.detections import Tube
from actdet.errors import DataError
from tests.actdet.data.formats.sources import facts, plain, tubes_of

META = """<meta><task><id>7</id><name>door task</name><size>40</size><mode>interpolation</mode>
<start_frame>0</start_frame><stop_frame>39</stop_frame><frame_filter></frame_filter>
<labels><label><name>fight</name><attributes/></label><label><name>no action</name></label>
<label><name>a &amp; b</name></label></labels>
<original_size><width>320</width><height>240</height></original_size><source>door.mp4</source></task>
<dumped>2026-11-26 10:00:00.000000+00:00</dumped></meta>"""


def box(frame: int, left: float, *, outside: int = 0, keyframe: int = 1, more: str = "") -> str:
    corners = f'xtl="{left:.2f}" ytl="20.00" xbr="{left + 30:.2f}" ybr="60.00"'
    state = f'outside="{outside}" occluded="0" keyframe="{keyframe}"'
    return f'<box frame="{frame}" {state} {corners} z_order="0"{more}></box>'


def track(*boxes: str, label: str = "fight", more: str = "") -> str:
    return f'<track id="0" label="{label}" source="manual"{more}>{"".join(boxes)}</track>'


def document(*tracks: str, meta: str = META) -> str:
    head = '<?xml version="1.0" encoding="utf-8"?>\n'
    return f"{head}<annotations><version>1.1</version>{meta}{''.join(tracks)}</annotations>\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "annotations.xml"


def corners(*lefts: float) -> list[list[float]]:
    return [[left, 20, left + 30, 60] for left in lefts]


def test_between_keyframes_boxes_move_on_straight_lines(path: Path) -> None:
    path.write_text(document(track(box(2, 10), box(6, 30), box(8, 50, outside=1), box(20, 5), box(21, 6, outside=1))))
    source = read_cvat(path, None)
    assert source.class_names == ("fight", "a & b")
    assert [video.name for video in source.videos] == ["door.mp4"]
    expected = (0, [2, 3, 4, 5, 6, 7, 20], corners(10, 15, 20, 25, 30, 40, 5))
    assert tubes_of(source, "door.mp4") == [expected]


def test_a_track_with_all_its_boxes_means_the_same(path: Path) -> None:
    """As CVAT itself writes: boxes between keyframes are there, and marked as no keyframes."""
    keyframes = {2, 6}
    lefts = {2: 10.0, 3: 15.0, 4: 20.0, 5: 25.0, 6: 30.0}
    boxes = [box(frame, left, keyframe=int(frame in keyframes)) for frame, left in lefts.items()]
    path.write_text(document(track(*boxes, box(7, 30, outside=1))))
    assert tubes_of(read_cvat(path, None), "door.mp4") == [(0, [2, 3, 4, 5, 6], corners(10, 15, 20, 25, 30))]


@pytest.mark.parametrize(("stop", "last"), [("39", 39), ("30", 30), ("", 39), ("100", 39)])
def test_a_last_box_lasts_to_the_end_of_the_task(path: Path, stop: str, last: int) -> None:
    meta = META.replace("<stop_frame>39</stop_frame>", f"<stop_frame>{stop}</stop_frame>")
    path.write_text(document(track(box(28, 10)), meta=meta))
    frames = list(range(28, last + 1))
    assert tubes_of(read_cvat(path, None), "door.mp4") == [(0, frames, corners(10) * len(frames))]


def test_turned_boxes_become_the_upright_ones_around_them(path: Path) -> None:
    turned = box(39, 10, more=' rotation="90"')
    path.write_text(document(track(turned)))
    # 30 wide and 40 high about (25, 40): a quarter turn makes it 40 wide and 30 high.
    assert tubes_of(read_cvat(path, None), "door.mp4") == [(0, [39], [[5, 25, 45, 55]])]


def test_several_actors_labels_and_shapes(path: Path) -> None:
    polygon = '<polygon frame="1" outside="0" occluded="0" keyframe="1" points="1,2;3,4;5,6"></polygon>'
    path.write_text(
        document(
            track(box(39, 1)),
            track(box(39, 2), label="a &amp; b"),
            track(box(39, 3), label="no action"),
            track(box(39, 4), label="car"),
            track(polygon),
            track(box(1, 1, outside=1)),
            track(),
        )
    )
    source = read_cvat(path, ["a & b", "fight"])
    assert tubes_of(source, "door.mp4") == [(1, [39], corners(1)), (0, [39], corners(2))]
    assert source.left_out.lines() == [
        "actions of class 'car', which is not among the class names: 1 (first in door.mp4)",
        "actions of class 'no action', which is not among the class names: 1 (first in door.mp4)",
        "shapes that are not boxes: 1 (first in annotations.xml)",
    ]


def test_a_project_has_several_videos(path: Path) -> None:
    tasks = "".join(
        f"<task><id>{number}</id><name>{name}</name><size>9</size><source>{name}.mp4</source></task>"
        for number, name in ((4, "a"), (5, "b"))
    )
    labels = "<labels><label><name>fight</name></label></labels>"
    meta = f"<meta><project><id>1</id><name>p</name><tasks>{tasks}</tasks>{labels}</project></meta>"
    path.write_text(document(track(box(39, 1), more=' task_id="5"'), track(box(39, 2), more=' task_id="4"'), meta=meta))
    source = read_cvat(path, None)
    assert tubes_of(source, "a.mp4") == [(0, [39], corners(2))]
    assert tubes_of(source, "b.mp4") == [(0, [39], corners(1))]


def test_a_folder_may_hold_many_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "annotations.xml").write_text(document(track(box(39, 1)), meta=META.replace("door.mp4", "")))
    source = read_cvat(tmp_path, None)
    assert [video.other_names[-1] for video in source.videos] == ["one", "two"]


def test_facts_are_in_the_head_of_the_file(path: Path) -> None:
    path.write_text(document())
    (video,) = read_cvat(path, None).videos
    assert video.facts is not None
    assert (video.facts.width, video.facts.height, len(video.facts.times)) == (320, 240, 40)


def test_a_video_of_another_size_is_not_used(path: Path) -> None:
    path.write_text(document(track(box(1, 1))))
    (video,) = read_cvat(path, None).videos
    with pytest.raises(UnusableError, match="of another size"):
        list(video.tubes(facts(width=640)))


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (lambda path: path, "file not found; expected an export of CVAT"),
    "FIFO": (lambda path: os.mkfifo(path), "it is not a regular file"),
    "empty": (lambda path: path.touch(), "is not XML (no element found"),
    "cut": (lambda path: path.write_text(document(track(box(1, 1)))[:-40]), "is not XML ("),
    "text": (lambda path: path.write_text("0 1 2 3 4"), "is not XML (syntax error: line 1, column 0)"),
    "binary": (lambda path: path.write_bytes(os.urandom(3000)), "is not XML"),
    "encoding": (lambda path: path.write_text('<?xml version="1.0" encoding="nonsense"?><annotations/>'), "is not XML"),
    "images": (lambda path: path.write_text(document('<image id="0" name="a.jpg"/>')), 'is "CVAT for images"'),
    "other XML": (lambda path: path.write_text("<svg></svg>"), "begins with <svg>; expected <annotations>"),
    "frame": (lambda path: path.write_text(document(track(box(-1, 0)))), "frame = '-1' is not a whole number from 0"),
    "large frame": (lambda path: path.write_text(document(track(box(10**9, 0)))), "frame = '1000000000'"),
    "nan": (lambda path: path.write_text(document(track(box(1, float("nan"))))), "xtl = 'nan' is not a finite number"),
    "beyond": (lambda path: path.write_text(document(track(box(1, -1e300)))), "' is beyond 1e+09"),
    "missing": (lambda path: path.write_text(document(track('<box frame="1"/>'))), "xtl = '' is not a finite number"),
    "deep": (lambda path: path.write_text(document("<a>" * 100_000)), "has elements inside of 50 others"),
    "entities": (
        lambda path: path.write_text(
            '<?xml version="1.0"?><!DOCTYPE annotations [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
            "<annotations><meta><task><name>&b;</name></task></meta></annotations>"
        ),
        "has a document type (annotations), which is not read",
    ),
    "outside entity": (
        lambda path: path.write_bytes(
            '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE x SYSTEM "file:///etc/passwd"><annotations/>'.encode(
                "utf-16"
            )
        ),
        "has a document type (x), which is not read",
    ),
}


@pytest.mark.parametrize(("make", "expected"), BAD_FILES.values(), ids=BAD_FILES)
def test_what_is_no_export_is_refused_in_one_line(path: Path, make: Callable[[Path], object], expected: str) -> None:
    make(path)
    with pytest.raises(DataError) as caught:
        read_cvat(path, None)
    assert str(caught.value).startswith(f"{path}:")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_exports_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"contains no \.xml file; expected an export of CVAT"):
        read_cvat(tmp_path, None)


@pytest.mark.parametrize("tag", ["__class__", "__dict__", "boxes"])
def test_no_element_of_the_head_reaches_into_the_program(path: Path, tag: str) -> None:
    path.write_text(document(meta=META.replace("<task>", f"<task><{tag}>x</{tag}>")))
    assert len(read_cvat(path, None).videos) == 1


def test_what_is_written_is_read_again(path: Path) -> None:
    random = np.random.default_rng(0)
    lefts = random.uniform(0, 200, (25, 1)).astype(np.float32)
    boxes = np.hstack([lefts, lefts / 2, lefts + 40, lefts / 2 + 30])
    boxes[3:9] = boxes[3]
    frames = np.array([*range(5, 20), *range(24, 30), *range(36, 40)])
    tubes = [
        Tube(1, frames, boxes),
        Tube(0, np.array([7]), boxes[:1]),
        Tube(2, np.array([39]), boxes[:1]),
        Tube(0, np.arange(2, 5), np.zeros((0, 4), np.float32)),
    ]
    write_cvat(path, tubes, ["fight", 'say "no"', "a < b & c"], facts(), "door <1>.mp4")

    source = read_cvat(path, None)
    assert source.class_names == ("fight", 'say "no"', "a < b & c")
    whole_picture = (0, [2, 3, 4], [[0, 0, 320, 240]] * 3)
    assert tubes_of(source, "door <1>.mp4") == [*map(plain, tubes[:3]), whole_picture]
