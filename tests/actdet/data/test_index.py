"""The index finds what is in a data set and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations, repeat
from pathlib import Path

import numpy as np
import pytest

from actdet.data import index as index_module
from actdet.data import probe_cache
from actdet.data.annotations import Annotation
from actdet.data.index import find_problems, load_index, survey
from actdet.errors import DataError
from actdet.video.info import VideoInfo
from tests.actdet.video.videos import corrupt, cut, write_video

NAMES = ("fight", "collapse")


def test_clips_are_sorted_and_carry_their_annotations(root: Path) -> None:
    index = load_index(root)
    assert [clip.name for clip in index.clips] == ["a", "b.x", "c", "d"]
    assert [len(clip.video.pts) for clip in index.clips] == [3, 4, 5, 6]
    assert index.labels.tolist() == [0, 1, 2, 2]
    assert index.class_names == NAMES
    assert index.median_seconds() == pytest.approx(4.5 / 25, abs=0.002)


def test_targets_are_relative_to_the_picture_as_displayed(root: Path) -> None:
    labels, boxes, counts = load_index(root).targets()
    assert (labels.dtype, boxes.dtype, counts.dtype) == (np.int64, np.float32, np.int32)
    assert counts.tolist() == [2, 1, 0, 0]
    assert labels[:2].tolist() == [[0, 0], [1, 0]]
    np.testing.assert_array_equal(boxes[0], np.array([[0.5, 0.5, 1, 1], [0.5, 0.625, 0.5, 0.75]], np.float32))
    np.testing.assert_array_equal(boxes[1, 0], np.array([0.25, 0.125, 0.5, 0.25], np.float32))


def test_targets_without_any_annotation_keep_one_row(root: Path) -> None:
    for text in (root / "annotations").iterdir():
        text.unlink()
    labels, boxes, counts = load_index(root).targets()
    assert (labels.shape, boxes.shape, counts.tolist()) == ((4, 1), (4, 1, 4), [0, 0, 0, 0])


def test_annotations_are_read_every_time(root: Path, probes: list[str]) -> None:
    load_index(root)
    probes.clear()
    (root / "annotations" / "c.txt").write_text("1 0 0 10 10")
    assert load_index(root).labels.tolist() == [0, 1, 1, 2]
    assert probes == []


def test_progress_counts_the_videos(root: Path) -> None:
    seen: list[tuple[int, int]] = []
    load_index(root, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_stopping_early_does_not_wait_for_a_whole_video(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with Ctrl-C during `actdet check`."""

    def frames(video: VideoInfo, *arguments: object, **options: object) -> Iterator[None]:
        return repeat(None, 0 if video.path.endswith("a.mp4") else 10**12)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(index_module, "stream_frames", frames)
    with pytest.raises(KeyboardInterrupt):
        find_problems(root, progress=interrupt)


def test_every_problem_is_found_once(root: Path) -> None:
    videos = root / "videos"
    annotations = root / "annotations"
    (videos / "sub").mkdir()
    (videos / ".hidden").touch()
    (videos / "notes.md").write_text("# notes")
    write_video(videos / "a.webm", "libvpx-vp9", frames=2)
    corrupt(write_video(videos / "e.webm", "libvpx-vp9"), range(20, 24))
    cut(write_video(videos / "f.mp4", container_options={"movflags": "faststart"}), 0.7)
    (annotations / "d.txt").write_text("0 1 2\n7 1 1 9 9\n")
    (annotations / "g.txt").write_text("")
    (annotations / "a.json").write_text("")
    expected = [
        (videos / "sub", "is a folder"),
        (videos / "a.webm", "same name as a.mp4"),
        (annotations / "a.json", "not an annotation file"),
        (annotations / "g.txt", "no video of this name"),
        (annotations / "d.txt", "3 fields"),
        (annotations / "d.txt", "class_id '7'"),
        (videos / "e.webm", "of its 40 frames decode"),
        (videos / "f.mp4", "truncated"),
    ]
    found = find_problems(root, NAMES)
    assert [problem.path for problem in found] == [str(path) for path, _ in expected]
    for problem, (_, text) in zip(found, expected, strict=True):
        assert text in str(problem)

    undecoded = find_problems(root, NAMES, decode=False)
    assert [p.path for p in undecoded] == [str(path) for path, _ in expected if path.name != "e.webm"]
    with pytest.raises(DataError, match="is a folder"):
        load_index(root)


def test_a_good_data_set_has_no_problem(root: Path) -> None:
    assert find_problems(root, NAMES) == []


@pytest.mark.parametrize("missing", [".", "videos", "annotations", "videos/*"])
def test_missing_parts_are_named(tmp_path: Path, missing: str) -> None:
    root = tmp_path / "set"
    for folder in (".", "videos", "annotations"):
        if missing not in (".", folder):
            (root / folder).mkdir(parents=True, exist_ok=True)
    with pytest.raises(DataError) as caught:
        load_index(root)
    assert caught.value.path == str(root / missing.removesuffix("*"))
    assert [str(problem) for problem in find_problems(root)] == [str(caught.value)]


# The same two actions in pictures of 64 x 48: a collapse that moves, and a fight without boxes.
TABLE = """second,track,class,x1,y1,x2,y2,interpolate
0,1,collapse,0,10,20,30,1
0.08,1,collapse,20,14,40,34,
0.04,b,0,,,,,
0.16,b,fight,,,,,
"""


def test_a_table_of_tubes_is_truth(root: Path) -> None:
    (root / "annotations" / "d.csv").write_text(TABLE)
    clip = load_index(root).clips[3]
    collapse, fight = clip.tubes
    assert (collapse.label, collapse.frames.tolist()) == (1, [0, 1, 2])
    assert collapse.boxes.tolist() == [[0, 10, 20, 30], [10, 12, 30, 32], [20, 14, 40, 34]]
    assert (fight.label, fight.frames.tolist(), len(fight.boxes)) == (0, [1, 4], 0)
    assert clip.annotated

    # A detector of whole clips learns the box around all boxes, and the whole picture where there is none.
    assert clip.annotations == (Annotation(1, (0, 10, 40, 34)), Annotation(0, (0, 0, 64, 48)))
    assert load_index(root).labels.tolist() == [0, 1, 2, 0]


def test_a_line_of_a_clip_is_a_tube_with_the_same_box_in_all_frames(root: Path) -> None:
    clip = load_index(root).clips[1]
    (tube,) = clip.tubes
    assert clip.table is None
    assert (tube.label, tube.frames.tolist()) == (1, [0, 1, 2, 3])
    assert tube.boxes.tolist() == [[0, 0, 32, 12]] * 4


@pytest.mark.parametrize("text", ["", "\n", "frame,track,class,x1,y1,x2,y2\n"])
def test_an_empty_table_says_that_nothing_happens(root: Path, text: str) -> None:
    (root / "annotations" / "d.csv").write_text(text)
    clip = load_index(root).clips[3]
    assert (clip.annotated, clip.annotations, clip.tubes) == (True, (), ())


def test_wrong_lines_of_a_table_are_problems_of_that_file(root: Path) -> None:
    table = root / "annotations" / "d.csv"
    table.write_text("frame,track,class,x1,y1,x2,y2\n6,1,fight,1,1,9,9\n0,1,fight,1,1,9,9\n0,2,jump,1,1,9,9\n")
    assert [(problem.path, problem.line) for problem in find_problems(root)] == [(str(table), 2), (str(table), 4)]
    with pytest.raises(DataError, match=r"d\.csv:2: frame = 6 is not in the video, whose 6 frames"):
        load_index(root)
    assert [clip.name for clip in load_index(root, bad_files="skip").clips] == ["a", "b.x", "c"]


@pytest.mark.parametrize(("end", "asks"), [(0.4, True), (1.2, False)])
def test_a_note_offers_windows_for_long_videos(root: Path, end: float, asks: bool) -> None:
    write_video(root / "videos" / "d.mkv", frames=50)
    (root / "annotations" / "d.csv").write_text(f"second,track,class,interpolate\n0,1,fight,1\n{end},1,fight,\n")
    notes = [note for note in load_index(root).notes if "window" in note]
    assert load_index(root, window=1.0).notes == ()
    if asks:
        (note,) = notes
        assert note.startswith(f"{root / 'annotations'}: videos with tables last 2.0 seconds, and their actions 0.4 ")
        assert note.endswith("actdet train --window 0.9 cuts the videos into parts")
    else:
        assert notes == []


def test_problems_of_tables_are_listed_beside_lines_of_another_form(root: Path) -> None:
    _annotate(root, ["0 0.5 0.5 0.2 0.3", "1 0.25 0.25 0.5 0.5", "0 0.1 0.9 0.2 0.2"])
    (root / "annotations" / "d.txt").unlink()
    (root / "annotations" / "d.csv").write_text("frame,track,class\n9,1,fight\n")
    yolo, frame = find_problems(root)
    assert "look like YOLO" in str(yolo)
    assert str(frame).startswith(f"{root / 'annotations' / 'd.csv'}:2: frame = 9 is not in the video")


def test_the_order_of_lines_changes_nothing(root: Path) -> None:
    """A fight and two collapses, in all their orders, give the same targets and the same label to stratify by."""
    found = set()
    for lines in permutations(["1 0 0 32 64", "0 8 16 24 64", "1 0 0 30 64"]):
        (root / "annotations" / "a.txt").write_text("\n".join(lines))
        index = load_index(root)
        found.add((index.labels.tobytes(), *(array.tobytes() for array in index.targets())))
        assert index.labels.tolist() == [0, 1, 2, 2]
        assert index.targets()[0][0].tolist() == [0, 1, 1]
    assert len(found) == 1


def test_stray_files_are_noted_and_change_nothing(root: Path) -> None:
    for folder in ("videos", "annotations"):
        (root / folder / "Thumbs.db").touch()
    found = survey(root)
    assert found.problems == []
    assert [clip.name for clip in found.clips] == ["a", "b.x", "c", "d"]
    notes = [f"{root / folder}: passed over Thumbs.db" for folder in ("videos", "annotations")]
    assert found.notes == notes
    assert load_index(root).notes == tuple(notes)


def test_a_clip_may_be_called_as_a_stray_file(root: Path) -> None:
    write_video(root / "videos" / "classes.mkv", frames=2)
    (root / "annotations" / "classes.txt").write_text("1 1 1 30 30\n")
    found = survey(root)
    assert found.problems == []
    assert [len(clip.annotations) for clip in found.clips if clip.name == "classes"] == [1]


def test_bad_files_are_left_out_and_listed(root: Path) -> None:
    """An empty video, one without its moov, a bad line and a stray annotation file, as failed copying leaves them."""
    videos = root / "videos"
    annotations = root / "annotations"
    (videos / "empty.mp4").touch()
    cut(write_video(videos / "f.mp4", frames=5), 0.4)
    (videos / "sub").mkdir()
    (annotations / "d.txt").write_text("0 1 2 3\n")
    (annotations / "gone.txt").write_text("")
    index = load_index(root, bad_files="skip")
    assert [clip.name for clip in index.clips] == ["a", "b.x", "c"]
    bad = [videos / "sub", annotations / "gone.txt", annotations / "d.txt", videos / "empty.mp4", videos / "f.mp4"]
    assert [problem.path for problem in index.left_out] == list(map(str, bad))
    assert len(index.targets()[2]) == 3
    with pytest.raises(DataError, match="is a folder"):
        load_index(root)


@pytest.mark.parametrize("damage", ["videos", "none"])
def test_if_no_clip_is_left_the_first_problem_is_raised(root: Path, damage: str) -> None:
    for video in (root / "videos").iterdir():
        if damage == "videos":
            video.write_bytes(b"")
        else:
            video.unlink()
    with pytest.raises(DataError, match=r"a\.mp4: is empty" if damage == "videos" else "no video of this name"):
        load_index(root, bad_files="skip")


def _annotate(root: Path, lines: list[str]) -> None:
    """Annotate each of the first three clips with one line, and the last clip with the remaining lines."""
    texts = [*lines[:3], "", "", ""][:3]
    for name, text in zip(("a", "b.x", "c", "d"), [*texts, "\n".join(lines[3:])], strict=True):
        (root / "annotations" / f"{name}.txt").write_text(text)


# The pictures are 32 x 64 (a) and 64 x 48 pixels.
YOLO = ["0 0.5 0.5 0.2 0.3", "1 0.25 0.25 0.5 0.5", "0 0.1 0.9 0.2 0.2", "1 0.5 0.5 1 1"]
SIZES = ["0 10 20 8 30", "1 40 8 20 40", "0 30 30 10 10", "1 2 2 60 40", "0 0 0 64 48"]


@pytest.mark.parametrize(
    ("lines", "form"),
    [
        (YOLO, "all 4 lines look like YOLO, <class_id> <center x> <center y> <width> <height> as fractions"),
        (YOLO[:1], "the only line looks like YOLO"),
        ([*YOLO[:2], "7 0.5 0.5 0.25 0.1"], "all 3 lines look like YOLO"),
        (SIZES, "all 5 lines look like <class_id> <x> <y> <width> <height>: x2 = x + width"),
    ],
)
def test_a_data_set_of_another_form_is_one_problem(root: Path, lines: list[str], form: str) -> None:
    _annotate(root, lines)
    (problem,) = find_problems(root)
    assert problem.path == str(root / "annotations")
    assert problem.problem.startswith(form)
    assert problem.problem.endswith("; expected <class_id> <x1> <y1> <x2> <y2> in pixels")
    for bad_files in ("stop", "skip"):
        with pytest.raises(DataError) as caught:
            load_index(root, bad_files=bad_files)
        assert str(caught.value) == str(problem)


@pytest.mark.parametrize(
    ("lines", "first"),
    [
        # A slip among good lines.
        (["0 30 20 10 40", "1 40 8 60 40"], "a.txt:1: x2 = 10 must be greater"),
        (["0 0.5 0.5 0.2 0.3", "1 4 8 60 40"], "a.txt:1: x2 = 0.2 must be greater"),
        # Swapped corners.
        (["1 4 8 30 40", "0 60 40 10 10"], "b.x.txt:1: x2 = 10 must be greater"),
        (["0 0.6 0.6 0.9 0.9", "0 0.5 0.8 0.9 0.9"], "a.txt:1: box 0.6 0.6 0.9 0.9 looks like fractions"),
    ],
)
def test_single_bad_lines_are_named_by_themselves(root: Path, lines: list[str], first: str) -> None:
    _annotate(root, lines)
    found = find_problems(root)
    assert str(found[0]).startswith(f"{root / 'annotations'}/{first}")
    with pytest.raises(DataError) as caught:
        load_index(root)
    assert str(caught.value) == str(found[0])


def test_a_note_asks_about_boxes_that_could_be_of_either_form(root: Path) -> None:
    either = ["0 2 3 20 30", "1 1 2 30 33", "0 5 6 40 30", *["1 4 4 30 20", "0 3 6 12 20"] * 3]
    _annotate(root, either)
    found = survey(root)
    assert found.problems == []
    (note,) = found.notes
    assert note.startswith(f"{root / 'annotations'}: all 9 lines are read as corners, ")

    # One line that can only be corners settles it.
    _annotate(root, [*either, "0 30 20 60 40"])
    assert survey(root).notes == []

    # That a few lines fit both forms may be chance.
    _annotate(root, either[:5])
    assert survey(root).notes == []


@pytest.mark.parametrize(("bare", "asks"), [(1, False), (2, False), (3, True), (4, True)])
def test_a_note_asks_about_many_missing_annotation_files(root: Path, bare: int, asks: bool) -> None:
    (root / "annotations" / "d.txt").touch()
    for name in ("a", "b.x", "c", "d")[:bare]:
        (root / "annotations" / f"{name}.txt").unlink()
    found = survey(root)
    assert [clip.annotated for clip in found.clips] == [False] * bare + [True] * (4 - bare)
    assert load_index(root).notes == tuple(found.notes)
    if asks:
        (note,) = found.notes
        assert note.startswith(f"{root / 'annotations'}: {bare} of 4 clips have no annotation file")
    else:
        assert found.notes == []


def test_remarks_on_videos_are_notes_now_and_later(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = probe_cache.probe
    monkeypatch.setattr(probe_cache, "probe", lambda path: replace(real(path), remarks=(f"{path.name} is odd",)))
    notes = [f"{root / 'videos' / name}: {name} is odd" for name in ("a.mp4", "b.x.webm", "c.avi", "d.mkv")]
    assert survey(root).notes == notes

    # From here on the remarks come from the cache.
    monkeypatch.setattr(probe_cache, "probe", real)
    assert survey(root).notes == notes
    assert survey(root).problems == []
