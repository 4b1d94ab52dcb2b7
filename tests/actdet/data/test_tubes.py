"""What a tube file may say, the one line that each mistake in it gets, and what is made of tubes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actdet.data.annotations import Annotation
from actdet.data.tubes import (
    clip_annotations,
    format_tubes,
    interpolate,
    read_tubes,
    thin,
    tube_of_clip_line,
    write_tubes,
)
from actdet.detections import Tube
from actdet.errors import DataError
from actdet.video.info import VideoInfo

CLASSES = ("fight", "collapse", "hold, carry")
HEADER = "frame,track,class,x1,y1,x2,y2"
NO_BOXES = np.zeros((0, 4), np.float32)


def video(frames: int = 40, pts: list[int] | None = None, size: tuple[int, int] = (320, 240)) -> VideoInfo:
    """25 frames a second or shown at `pts` milliseconds, without a file behind it."""
    times = np.array(pts) if pts else 40 * np.arange(frames)
    last = int(times[-1]) + 40
    return VideoInfo("v.mp4", *size, 0, Fraction(1, 1000), times, last, "h264", True, 0)


def read(path: Path, text: str, info: VideoInfo | None = None) -> list[Tube]:
    """The tubes of a file that has no mistake."""
    path.write_text(text, encoding="utf-8")
    tubes, problems = read_tubes(path, info or video(), CLASSES)
    assert not problems
    return tubes


def plain(tubes: list[Tube]) -> list[tuple[int, list[int], list[list[float]]]]:
    for tube in tubes:
        assert (tube.frames.dtype, tube.boxes.dtype) == (np.int64, np.float32)
    return [(tube.label, tube.frames.tolist(), tube.boxes.tolist()) for tube in tubes]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clip.csv"


ONE = [(0, [3, 4], [[10, 20, 30.5, 40], [11, 20, 31.5, 40]])]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("\n\n", []),
        (HEADER, []),
        (f"{HEADER}\n3,1,0,10,20,30.5,40\n4,1,0,11,20,31.5,40\n", ONE),
        (f"{HEADER}\n3,1,fight,10,20,30.5,40\n4,1,0,11,20,31.5,40", ONE),
        (
            f"\ufeff\n{HEADER}\r\n\r\n 3 , 1 , fight , 10 , 20 , 30.5 , 40 \r\n4,1,fight,11,20,31.5,40\r\n,,,,,,\r\n",
            ONE,
        ),
        (f"{HEADER}\n4,1,fight,11,20,31.5,40\n3,1,fight,10,20,30.5,40\n", ONE),
        ("x2;y2;x1;y1;Track;CLASS;frame\n30.5;40;10;20;1;0;3\n31.5;40;11;20;1;0;4", ONE),
        ("class\ttrack\tframe\tx1\ty1\tx2\ty2\n0\t1\t3\t10\t20\t30.5\t40\n0\t1\t4\t11\t20\t31.5\t40", ONE),
        ('frame,track,class\n0,a,"hold, carry"\n2,a,2\n', [(2, [0, 2], [])]),
        (f"{HEADER}\n5,1,collapse,,,,\n6,1,collapse,,,,\n", [(1, [5, 6], [])]),
        # Several actors, and an actor who does several things, at once or one after the other.
        (
            f"{HEADER}\n1,b,0,1,2,3,4\n1,a,0,5,6,7,8\n1,a,1,5,6,7,8\n2,b,0,2,2,3,4\n9,b,1,,,,\n",
            [
                (0, [1, 2], [[1, 2, 3, 4], [2, 2, 3, 4]]),
                (0, [1], [[5, 6, 7, 8]]),
                (1, [1], [[5, 6, 7, 8]]),
                (1, [9], []),
            ],
        ),
        # A box up to a pixel outside is clipped.
        (f"{HEADER}\n0,1,0,-1,-0.5,321,240.25\n", [(0, [0], [[0, 0, 320, 240]])]),
    ],
)
def test_a_table_is_read_whatever_its_form(path: Path, text: str, expected: list[object]) -> None:
    assert plain(read(path, text)) == expected


def test_gaps_are_filled_only_where_the_file_says_so(path: Path) -> None:
    lines = ["0,1,0,0,0,10,10,1", "4,1,0,4,0,18,10,0", "8,1,0,8,0,28,10,", "10,1,0,8,4,28,14,1"]
    (tube,) = read(path, f"{HEADER},interpolate\n" + "\n".join(lines))
    assert tube.frames.tolist() == [0, 1, 2, 3, 4, 8, 10]
    assert tube.boxes[:5, 0].tolist() == [0, 1, 2, 3, 4]
    assert tube.boxes[:5, 2].tolist() == [10, 12, 14, 16, 18]

    (span,) = read(path, "frame,track,class,interpolate\n5,1,1,1\n9,1,1,0\n")
    assert plain([span]) == [(1, [5, 6, 7, 8, 9], [])]


@given(st.lists(st.integers(1, 90), min_size=2, max_size=30, unique=True), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_seconds_are_those_of_the_nearest_frame(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], at: float
) -> None:
    """Uneven times that begin late, as those of a phone."""
    pts = [700 + int(step) for step in np.cumsum(steps)]
    info = video(pts=pts)
    second = round(at * info.seconds, 3)
    path = tmp_path_factory.getbasetemp() / "seconds.csv"
    (tube,) = read(path, f"second,track,class\n{second},1,0\n", info)

    distances = np.abs((np.array(pts) - pts[0]) / 1000 - second)
    assert distances[tube.frames[0]] == pytest.approx(distances.min(), abs=1e-9)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("3,1,fight,10,20,30,40", "column '3' is unknown"),
        ("frame,track,label,x1,y1,x2,y2", "column 'label' is unknown"),
        ("frame,track,class,x1,y1,x2,y2,", "column '' is unknown"),
        ("frame,class,x1,y1,x2,y2", "there is no column track"),
        ("frame,track,x1,y1,x2,y2", "there is no column class"),
        ("track,class", "there must be one of the columns frame and second"),
        ("frame,second,track,class", "there must be one of the columns frame and second"),
        ("frame,track,class,x1,y1,x2", "there is no column y2"),
        ("frame,track,class,track", "column track comes twice"),
        ("frame track class x1 y1 x2 y2", "column 'frame track class x1 y1 x2 y2' is unknown"),
        ("x" * 2000, "has 2000 characters"),
    ],
)
def test_a_wrong_header_is_one_problem(path: Path, header: str, expected: str) -> None:
    path.write_text(f"\n{header}\n1,2,3\n4,5,6\n")
    tubes, (problem,) = read_tubes(path, video(), CLASSES)
    assert not tubes
    assert str(problem).startswith(f"{path}:2: {expected}")
    assert str(problem).endswith("; expected a header such as frame,track,class,x1,y1,x2,y2")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("1,1,fight,10,20,30", "has 6 fields; expected 7, as the header: frame,track,class,x1,y1,x2,y2"),
        ("1,1,fight,10,20,30,40,50", "has 8 fields"),
        ("1 1 fight 10 20 30 40", "has 1 field"),
        ("-1,1,fight,10,20,30,40", "frame = '-1' is not a whole number from 0"),
        ("1.5,1,fight,10,20,30,40", "frame = '1.5' is not a whole number"),
        ("\u0661,1,fight,10,20,30,40", "frame = "),
        ("40,1,fight,10,20,30,40", "frame = 40 is not in the video, whose 40 frames are counted from 0"),
        ("1234567890,1,fight,10,20,30,40", "frame = '1234567890' is not a whole number"),
        ("1,,fight,10,20,30,40", "track is empty"),
        ("1,1,figth,10,20,30,40", "class 'figth' is unknown; known classes: 0 = fight, 1 = collapse"),
        ("1,1,3,10,20,30,40", "class '3' is unknown"),
        ("1,1,-1,10,20,30,40", "class '-1'"),
        ("1,1,,10,20,30,40", "class ''"),
        ("1,1,fight,10,20,30,", "y2 = '' is not a finite number"),
        ("1,1,fight,nan,20,30,40", "x1 = 'nan' is not a finite number"),
        ("1,1,fight,10,20,1e999,40", "x2 = '1e999'"),
        ("1,1,fight,1_0,20,30,40", "x1 = '1_0'"),
        ("1,1,fight,30,20,10,40", "x2 = 10 must be greater than x1 = 30"),
        ("1,1,fight,10,40,30,40", "y2 = 40 must be greater than y1 = 40"),
        ("1,1,fight,-1.01,20,30,40", "box -1.01 20 30 40 is outside the picture of 320x240 pixels"),
        ("1,1,fight,10,20,30,241.5", "outside the picture"),
        ("1,1,fight,0.2,0.3,0.4,0.5", "looks like fractions"),
        ('1,1,"fight,10,20,30,40', "has 3 fields"),
        ("1,1,fight,10,20,30," + "0" * 2000, "characters; expected one field for each column"),
        ("5,1,fight,10,20,30,40", "frame 5 comes twice for track 1 and class fight, first in line 2"),
        ("6,1,fight,,,,", "track 1 of class fight has no box here, but one in line 2"),
    ],
)
def test_each_mistake_is_named_with_its_line_and_value(path: Path, line: str, expected: str) -> None:
    path.write_text(f"{HEADER}\n5,1,fight,10,20,30,40\n\n{line}\n7,2,1,,,,\n", encoding="utf-8")
    tubes, (problem,) = read_tubes(path, video(), CLASSES)
    assert str(problem).startswith(f"{path}:4: ")
    assert expected in str(problem)
    assert "\n" not in str(problem)
    assert len(str(problem)) < len(str(path)) + 250
    assert plain(tubes) == [(0, [5], [[10, 20, 30, 40]]), (1, [7], [])]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("1.601,1,0,", "second = 1.601 is not in the video, which lasts 1.600 seconds"),
        ("-0.1,1,0,", "second = -0.1 is not in the video"),
        ("0:01,1,0,", "second = '0:01' is not a finite number"),
        ("0.41,1,0,", "second 0.41, which is frame 10, comes twice for track 1 and class fight, first in line 2"),
        ("1,1,0,2", "interpolate = '2' is neither 1 nor 0"),
    ],
)
def test_mistakes_in_seconds_and_switches_are_named(path: Path, line: str, expected: str) -> None:
    path.write_text(f"second,track,class,interpolate\n0.4,1,0,1\n{line}\n")
    _, (problem,) = read_tubes(path, video(), CLASSES)
    assert str(problem).startswith(f"{path}:3: {expected}")


def test_the_end_of_the_video_is_its_last_frame(path: Path) -> None:
    (tube,) = read(path, "second,track,class\n1.6,1,0\n")
    assert tube.frames.tolist() == [39]


def test_a_class_that_is_called_as_a_number_is_found_by_its_name(path: Path) -> None:
    path.write_text("frame,track,class\n1,1,1\n2,2,0\n")
    tubes, _ = read_tubes(path, video(), ("1", "0", "x"))
    assert [tube.label for tube in tubes] == [0, 1]


def test_of_many_classes_the_first_are_listed(path: Path) -> None:
    path.write_text("frame,track,class\n1,1,none\n")
    _, (problem,) = read_tubes(path, video(), [f"class {number}" for number in range(80)])
    assert str(problem).endswith("11 = class 11, and 68 more")


def test_after_a_thousand_wrong_lines_no_more_are_read(path: Path) -> None:
    path.write_text("frame,track,class\n" + "x,1,0\n" * 5000)
    _, problems = read_tubes(path, video(), CLASSES)
    assert len(problems) == 1001
    assert str(problems[-1]).endswith("has 1000 wrong lines; later lines were not read")


def test_a_small_file_cannot_fill_the_memory(path: Path) -> None:
    long = video(frames=2_000_000)
    lines = [f"{frame},{track},0,1" for track in range(50) for frame in (0, 1_999_999)]
    path.write_text("frame,track,class,interpolate\n" + "\n".join(lines))
    tubes, (problem,) = read_tubes(path, long, CLASSES)
    assert not tubes
    assert "its tubes have 100000000 frames in all, more than 10000000" in str(problem)


def _endless(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(50 * 2**20)


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "50 MB": (lambda path: path.write_bytes(b"1,1,0,10,20,30,40\n" * 2_900_000), "has more than 33554432 bytes"),
    "endless line": (_endless, "has more than 33554432 bytes"),
    "empty lines": (lambda path: path.write_bytes(b"\n" * 2_000_000), "has more than 1000000 lines"),
    "no file": (lambda path: path, "file not found; expected a table of tubes"),
    "FIFO": (lambda path: os.mkfifo(path), "cannot be read: it is not a regular file"),
    "folder": (lambda path: path.mkdir(), "cannot be read: it is not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "cannot be read: it is not a regular file"),
    "loop": (lambda path: path.symlink_to(path), "cannot be read: Too many levels"),
    "UTF-16": (lambda path: path.write_bytes(HEADER.encode("utf-16")), "byte 0 is not UTF-8 text"),
    "video": (lambda path: path.write_bytes(b"\x00\x00\x00\x20ftypisom\xff\xff"), "byte 12 is not UTF-8 text"),
    "zeros": (lambda path: path.write_bytes(bytes(2000)), "has 2000 characters"),
}


@pytest.mark.parametrize(("make", "expected"), BAD_FILES.values(), ids=BAD_FILES)
def test_what_is_no_table_is_refused_in_one_short_line(
    path: Path, make: Callable[[Path], object], expected: str
) -> None:
    make(path)
    start = time.perf_counter()
    tubes, (problem,) = read_tubes(path, video(), CLASSES)
    assert time.perf_counter() - start < 0.5
    assert tubes == []
    assert str(problem).startswith(f"{path}:")
    assert expected in str(problem)
    assert len(problem.problem) < 200
    assert "\n" not in str(problem)


@st.composite
def tubes_in_picture(draw: st.DrawFn) -> Tube:
    """A tube in a video of 40 frames of 320 x 240, perhaps without boxes, perhaps at rest for a while."""
    frames = sorted(draw(st.sets(st.integers(0, 39), min_size=1)))
    label = draw(st.integers(0, 2))
    if draw(st.booleans()):
        return Tube(label, np.array(frames), NO_BOXES)

    seed = draw(st.integers(0, 10**6))
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 1, (len(frames), 2, 2)) * [319, 239]
    boxes = np.concatenate([corners.min(1), corners.max(1) + 1], axis=1).astype(np.float32)
    still = random.random(len(frames)) < 0.7
    for row in range(1, len(frames)):
        if still[row]:
            boxes[row] = boxes[row - 1]
    return Tube(label, np.array(frames), boxes)


@given(st.lists(tubes_in_picture(), max_size=4))
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, tubes: list[Tube]) -> None:
    path = tmp_path_factory.getbasetemp() / "written.csv"
    write_tubes(path, tubes, CLASSES)
    again, problems = read_tubes(path, video(), CLASSES)
    assert not problems
    assert plain(again) == plain(tubes)


def test_what_is_written_is_short_where_nothing_moves() -> None:
    boxes = np.array([[1, 2, 30, 40]] * 30 + [[1.5, 2, 30, 40]] * 2, np.float32)
    text = format_tubes([Tube(2, np.arange(32), boxes), Tube(0, np.arange(5, 20), NO_BOXES)], CLASSES)
    assert text.splitlines() == [
        f"{HEADER},interpolate",
        '0,1,"hold, carry",1,2,30,40,1',
        '29,1,"hold, carry",1,2,30,40,0',
        '30,1,"hold, carry",1.5,2,30,40,0',
        '31,1,"hold, carry",1.5,2,30,40,0',
        "5,2,fight,,,,,1",
        "19,2,fight,,,,,0",
    ]


def test_what_would_be_too_large_to_be_read_is_not_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actdet.data.tubes._MOST_BYTES", 300)
    boxes = np.arange(160, dtype=np.float32).reshape(40, 4)
    with pytest.raises(DataError, match="its tubes take more than 300 bytes; cut the video into shorter ones"):
        write_tubes(path, [Tube(0, np.arange(40), boxes)], CLASSES)
    assert not path.exists()


@given(tubes_in_picture(), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_gaps_are_filled_on_straight_lines(tube: Tube, seed: int) -> None:
    filled = np.random.default_rng(seed).random(len(tube.frames)) < 0.5
    whole = interpolate(tube, filled)

    ends = zip(tube.frames, np.append(tube.frames[1:], tube.frames[-1] + 1), filled, strict=True)
    expected = [frame for first, end, fills in ends for frame in (range(first, end) if fills else [first])]
    assert whole.frames.tolist() == expected
    for corner in range(4 if len(tube.boxes) else 0):
        straight = np.interp(expected, tube.frames, tube.boxes[:, corner].astype(np.float64))
        np.testing.assert_allclose(whole.boxes[:, corner], straight, rtol=1e-6)


@given(tubes_in_picture())
@settings(max_examples=100, deadline=None)
def test_all_gaps_are_filled_by_default(tube: Tube) -> None:
    whole = interpolate(tube)
    assert whole.frames.tolist() == list(range(tube.frames[0], tube.frames[-1] + 1))


@given(tubes_in_picture())
@settings(max_examples=100, deadline=None)
def test_a_thinned_tube_is_filled_to_what_it_was(tube: Tube) -> None:
    kept, filled = thin(tube)
    assert plain([interpolate(kept, filled)]) == plain([tube])


def test_a_clip_has_the_box_around_each_of_its_tubes() -> None:
    boxes = np.array([[10, 20, 30, 40], [5, 25, 31, 38], [12, 15, 20, 44.5]], np.float32)
    tubes = [Tube(1, np.array([0, 3, 4]), boxes), Tube(0, np.array([7]), boxes[:1]), Tube(1, np.arange(9), NO_BOXES)]
    assert clip_annotations(tubes, 320, 240) == (
        Annotation(1, (5, 15, 31, 44.5)),
        Annotation(0, (10, 20, 30, 40)),
        Annotation(1, (0, 0, 320, 240)),
    )
    assert clip_annotations([], 320, 240) == ()


def test_a_line_of_a_clip_is_a_tube_that_does_not_move() -> None:
    line = Annotation(1, (10, 20.25, 30.5, 40))
    tube = tube_of_clip_line(line, range(3))
    assert plain([tube]) == [(1, [0, 1, 2], [[10, 20.25, 30.5, 40]] * 3)]
    assert plain([tube_of_clip_line(line, range(7, 9))]) == [(1, [7, 8], [[10, 20.25, 30.5, 40]] * 2)]
    assert clip_annotations([tube], 320, 240) == (line,)


def test_the_tables_in_the_documentation_are_right(path: Path) -> None:
    page = Path(__file__).parents[3] / "docs" / "formats.md"
    tables = re.findall(r"^```\n((?:frame|second),.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = [plain(read(path, table, video(frames=200, size=(640, 480)))) for table in tables]
    assert [len(tubes) for tubes in found] == [2, 1, 1]
    assert found[1][0][1] == found[2][0][1] == list(range(75, 151))
