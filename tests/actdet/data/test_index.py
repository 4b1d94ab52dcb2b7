"""The index finds what is in a data set and what is wrong with it, and remembers only what still holds."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actdet.data import index as index_module
from actdet.data.index import find_problems, load_index, survey
from actdet.errors import DataError
from actdet.video.decoding import VideoInfo
from tests.actdet.video.videos import corrupt, cut, set_matrix, write_video

CACHE = ".actdet-index.json"
NAMES = ("fight", "collapse")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four clips: two fights, a collapse, nothing."""
    videos, annotations = tmp_path / "videos", tmp_path / "annotations"
    videos.mkdir()
    annotations.mkdir()
    set_matrix(write_video(videos / "a.mp4", frames=3, size=(64, 32)), 0, 1, -1, 0)
    write_video(videos / "b.x.webm", "libvpx-vp9", frames=4)
    write_video(videos / "c.avi", "mpeg4", frames=5)
    write_video(videos / "d.mkv", frames=6)
    (annotations / "a.txt").write_text("0 8 16 24 64\n0 0 0 32 64\n")
    (annotations / "b.x.txt").write_text("1 0 0 32 12\n")
    (annotations / "c.txt").write_text("")
    return tmp_path


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that get probed, as they are."""
    probed: list[str] = []
    real = index_module.probe

    def counting(path: Path) -> Any:
        probed.append(path.name)
        return real(path)

    monkeypatch.setattr(index_module, "probe", counting)
    return probed


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
    np.testing.assert_array_equal(boxes[0], np.float32([[0.5, 0.5, 1, 1], [0.5, 0.625, 0.5, 0.75]]))
    np.testing.assert_array_equal(boxes[1, 0], np.float32([0.25, 0.125, 0.5, 0.25]))


def test_targets_without_any_annotation_keep_one_row(root: Path) -> None:
    for text in (root / "annotations").iterdir():
        text.unlink()
    labels, boxes, counts = load_index(root).targets()
    assert (labels.shape, boxes.shape, counts.tolist()) == ((4, 1), (4, 1, 4), [0, 0, 0, 0])


def test_only_a_changed_file_is_probed_again(root: Path, probes: list[str]) -> None:
    first = load_index(root)
    assert sorted(probes) == ["a.mp4", "b.x.webm", "c.avi", "d.mkv"]
    written = (root / CACHE).stat().st_mtime_ns
    probes.clear()
    second = load_index(root)
    assert probes == []
    assert (root / CACHE).stat().st_mtime_ns == written
    for old, new in zip(first.clips, second.clips, strict=True):
        before, after = vars(old.video), vars(new.video)
        for name in ("pts", "entries", "places"):
            assert before.pop(name).tolist() == after.pop(name).tolist()
        assert before == after
    write_video(root / "videos" / "c.avi", "mpeg4", frames=9)
    os.utime(root / "videos" / "d.mkv", ns=(1, 1))
    assert [len(clip.video.pts) for clip in load_index(root).clips] == [3, 4, 9, 6]
    assert sorted(probes) == ["c.avi", "d.mkv"]


def test_annotations_are_read_every_time(root: Path, probes: list[str]) -> None:
    load_index(root)
    probes.clear()
    (root / "annotations" / "c.txt").write_text("1 0 0 10 10")
    assert load_index(root).labels.tolist() == [0, 1, 1, 2]
    assert probes == []


def test_facts_of_removed_files_are_forgotten(root: Path) -> None:
    load_index(root)
    (root / "videos" / "d.mkv").unlink()
    load_index(root)
    assert sorted(json.loads((root / CACHE).read_text())["videos"]) == ["a.mp4", "b.x.webm", "c.avi"]


def _old(cache: dict[str, Any]) -> str:
    return json.dumps(cache | {"version": 0})


def _broken_entry(cache: dict[str, Any]) -> str:
    del cache["videos"]["a.mp4"]["pts_steps"]
    cache["videos"]["b.x.webm"]["time_base"] = "1/0"
    cache["videos"]["c.avi"] = None
    cache["videos"]["d.mkv"]["pts_steps"] = ["x"]
    return json.dumps(cache)


@pytest.mark.parametrize(
    "damage",
    [_old, _broken_entry, lambda cache: json.dumps(cache)[:99], lambda cache: "[]", lambda cache: "\0"],
)
def test_a_damaged_cache_is_rebuilt(root: Path, probes: list[str], damage: Callable[[Any], str]) -> None:
    load_index(root)
    good = json.loads((root / CACHE).read_text())
    (root / CACHE).write_text(damage(json.loads(json.dumps(good))))
    probes.clear()
    assert [len(clip.video.pts) for clip in load_index(root).clips] == [3, 4, 5, 6]
    assert len(probes) == 4
    assert json.loads((root / CACHE).read_text()) == good


def test_a_folder_that_cannot_be_written_to_goes_without_a_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # root may write anywhere, so the refusal of a read-only disk is played.
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert len(load_index(root).clips) == 4
    assert sorted(path.name for path in root.iterdir()) == ["annotations", "videos"]


def test_a_full_disk_is_told_and_leaves_no_draft(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(DataError, match="cannot be written: No space left"):
        load_index(root)
    assert sorted(path.name for path in root.iterdir()) == ["annotations", "videos"]


def test_progress_counts_the_videos(root: Path) -> None:
    seen: list[tuple[int, int]] = []
    load_index(root, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_who_stops_early_waits_for_no_whole_video(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by Ctrl-C during `actdet check`."""

    def frames(video: VideoInfo, *arguments: object, **options: object) -> Iterator[None]:
        return repeat(None, 0 if video.path.endswith("a.mp4") else 10**12)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(index_module, "stream_frames", frames)
    with pytest.raises(KeyboardInterrupt):
        find_problems(root, progress=interrupt)


def test_every_problem_is_found_once(root: Path) -> None:
    videos, annotations = root / "videos", root / "annotations"
    (videos / "sub").mkdir()
    (videos / ".hidden").touch()
    (videos / "notes.md").write_text("# notes")
    write_video(videos / "a.webm", "libvpx-vp9", frames=2)
    corrupt(write_video(videos / "e.webm", "libvpx-vp9"), range(20, 24))
    cut(write_video(videos / "f.mp4", container_options={"movflags": "faststart"}), 0.7)
    (annotations / "d.txt").write_text("0 1 2\n7 1 1 9 9\n")
    (annotations / "g.txt").write_text("")
    (annotations / "a.csv").write_text("")
    expected = [
        (videos / "sub", "is a folder"),
        (videos / "a.webm", "same name as a.mp4"),
        (annotations / "a.csv", "no annotation file"),
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


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        (".", "no such folder; expected is a folder with videos/ and annotations/"),
        ("videos", "no such folder; expected is a folder with the videos"),
        ("annotations", "no such folder; expected is a folder with NAME.txt"),
        ("videos/*", "holds no video"),
    ],
)
def test_missing_parts_are_named(tmp_path: Path, missing: str, expected: str) -> None:
    root = tmp_path / "set"
    for folder in (".", "videos", "annotations"):
        if missing not in (".", folder):
            (root / folder).mkdir(parents=True, exist_ok=True)
    with pytest.raises(DataError, match=expected) as caught:
        load_index(root)
    assert caught.value.path == str(root / missing.removesuffix("*"))
    assert [str(problem) for problem in find_problems(root)] == [str(caught.value)]


def test_the_order_of_lines_changes_nothing(root: Path) -> None:
    """A fight and two collapses, in all their orders: as data for training, and as what clips are divided by."""
    found = set()
    for lines in permutations(["1 0 0 32 64", "0 8 16 24 64", "1 0 0 30 64"]):
        (root / "annotations" / "a.txt").write_text("\n".join(lines))
        index = load_index(root)
        found.add((index.labels.tobytes(), *(array.tobytes() for array in index.targets())))
    assert len(found) == 1
    assert index.labels.tolist() == [0, 1, 2, 2]
    assert index.targets()[0][0].tolist() == [0, 1, 1]


BAD_FACTS: dict[str, Any] = {
    "width": ["64", 64.0, True, None, 0, -64, 2**40],
    "rotation": [45, -90, "0"],
    "end": [0, 1e300, 2**70, "9"],
    "codec": [None, 5, ["h264"]],
    "pixel_format": [None, 5, ["yuv420p"]],
    "timed": [1, "yes", None],
    "skipped": [-1, 0.5],
    "bytes": [1, "9"],
    "time_base": ["1e999999999", "0/1", "1/0", "-1/25", 0.04, "1/" + "9" * 99],
    "pts_steps": [
        [],
        [0, 0, 512],
        [0, -512, 512],
        [0, 1.5, 2],
        [0, "512"],
        [0, [512]],
        [0, 2**70],
        [0, True],
        "000",
        7,
    ],
    "entries": [[3], [-1], [1, 0], [0, 0], [0.0], ["0"], {}, None],
    "places": [[0, 1], [0, 1, 1], [0, 1, 3], [-2, 0, 1, 2], [0.0, 1, 2], ["0"], {}, None],
    "alone": [1, None],
    "remarks": ["x", [1], ["two\nlines"], {"a": 1}],
}


@pytest.mark.parametrize(("fact", "value"), [(fact, value) for fact, values in BAD_FACTS.items() for value in values])
def test_a_fact_that_cannot_be_is_read_again(tmp_path: Path, probes: list[str], fact: str, value: Any) -> None:
    for folder in ("videos", "annotations"):
        (tmp_path / folder).mkdir()
    write_video(tmp_path / "videos" / "a.mp4", frames=3)
    load_index(tmp_path)
    good = (tmp_path / CACHE).read_bytes()
    cache = json.loads(good)
    assert fact in cache["videos"]["a.mp4"]
    cache["videos"]["a.mp4"][fact] = value
    (tmp_path / CACHE).write_text(json.dumps(cache))
    probes.clear()
    assert len(load_index(tmp_path).clips[0].video.pts) == 3
    assert probes == ["a.mp4"]
    assert (tmp_path / CACHE).read_bytes() == good


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**36)


@pytest.mark.parametrize(
    "hostile",
    [
        _huge,
        lambda path: os.mkfifo(path),
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path),
        lambda path: path.write_text("[" * 9000),
        lambda path: path.write_text('{"version": ' + "3" * 9000 + "}"),
        lambda path: path.write_text('{"version": 3, "videos": [["a.mp4", {}]]}'),
        lambda path: path.write_text('{"version": 3, "videos": null}'),
        lambda path: path.write_text('{"version": 3, "videos": {"a.mp4": [], "b.x.webm": "x", "c.avi": 5}}'),
    ],
    ids=["64 GiB", "FIFO", "folder", "device", "loop", "nested", "number", "pairs", "null", "no entries"],
)
def test_a_hostile_cache_counts_as_none(root: Path, probes: list[str], hostile: Callable[[Path], object]) -> None:
    hostile(root / CACHE)
    assert [len(clip.video.pts) for clip in load_index(root).clips] == [3, 4, 5, 6]
    assert len(probes) == 4


STRAYS = {
    "videos": ["Thumbs.db", ".DS_Store", "desktop.ini", "notes.md", "classes.txt", "a.srt", "README.TXT"],
    "annotations": ["Thumbs.db", ".DS_Store", "desktop.ini", "notes.txt", "classes.txt", "readme.md", "obj.names"],
}


def test_stray_files_are_passed_over_with_a_note(root: Path) -> None:
    for folder, names in STRAYS.items():
        for name in names:
            (root / folder / name).write_text("fight\ncollapse\n")
        (root / folder / ".a.1.partial.mp4").touch()
        (root / folder / ".hidden").mkdir()
    found = survey(root)
    assert found.problems == []
    assert (
        [clip.name for clip in found.clips] == [clip.name for clip in load_index(root).clips] == ["a", "b.x", "c", "d"]
    )
    for folder, note in zip(STRAYS, found.notes, strict=True):
        assert note.startswith(f"{root / folder}: passed over .DS_Store, .hidden, ")
        assert note.endswith(
            f"and {len(STRAYS[folder]) + 1 - 5} more; class names are read from {root / 'classes.txt'}"
        )
        assert "partial" not in note


def test_what_may_be_annotations_is_not_passed_over(root: Path) -> None:
    """Beside the videos, in another format, and of a video that is called as a stray file."""
    (root / "videos" / "d.txt").write_text("0 0 0 9 9")
    (root / "annotations" / "d.json").write_text("{}")
    write_video(root / "videos" / "classes.mkv", frames=2)
    (root / "annotations" / "classes.txt").write_text("1 1 1 30 30\n")
    found = survey(root)
    assert [problem.path for problem in found.problems] == [
        str(root / "videos" / "d.txt"),
        str(root / "annotations" / "d.json"),
    ]
    assert "expected in" in found.problems[0].problem
    assert [len(clip.annotations) for clip in found.clips if clip.name == "classes"] == [1]


def test_bad_files_are_left_out_and_listed(root: Path) -> None:
    """0 bytes, no moov, a bad line, a stray annotation file: each as it happens to a copy."""
    videos, annotations = root / "videos", root / "annotations"
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
def test_where_nothing_is_left_the_first_problem_is_raised(root: Path, damage: str) -> None:
    for video in (root / "videos").iterdir():
        video.write_bytes(b"") if damage == "videos" else video.unlink()
    with pytest.raises(DataError, match=r"a\.mp4: is empty" if damage == "videos" else "no video of this name"):
        load_index(root, bad_files="skip")


def _annotate(root: Path, lines: list[str]) -> None:
    """One line for each of the first three clips, the others for the last."""
    texts = [*lines[:3], "", "", ""][:3]
    for name, text in zip(("a", "b.x", "c", "d"), [*texts, "\n".join(lines[3:])], strict=True):
        (root / "annotations" / f"{name}.txt").write_text(text)


# The pictures are 32 x 64 (a) and 64 x 48 pixels.
YOLO = ["0 0.5 0.5 0.2 0.3", "1 0.25 0.25 0.5 0.5", "0 0.1 0.9 0.2 0.2", "1 0.5 0.5 1 1"]
SIZES = ["0 10 20 8 30", "1 40 8 20 40", "0 30 30 10 10", "1 2 2 60 40", "0 0 0 64 48"]


@pytest.mark.parametrize(
    ("lines", "form"),
    [
        (YOLO, "all 4 lines look like YOLO, <class_id> <center x> <center y> <width> <height> as shares"),
        (YOLO[:1], "the only line looks like YOLO"),
        ([*YOLO[:2], "7 0.5 0.5 0.25 0.1"], "all 3 lines look like YOLO"),
        (SIZES, "all 5 lines look like <class_id> <x> <y> <width> <height>: x2 = x + width"),
    ],
)
def test_a_data_set_of_another_form_is_named_as_that(root: Path, lines: list[str], form: str) -> None:
    _annotate(root, lines)
    (problem,) = find_problems(root)
    assert problem.path == str(root / "annotations")
    assert problem.problem.startswith(form)
    assert problem.problem.endswith("expected is <class_id> <x1> <y1> <x2> <y2> in pixels")
    for bad_files in ("stop", "skip"):
        with pytest.raises(DataError) as caught:
            load_index(root, bad_files=bad_files)
        assert str(caught.value) == str(problem)


@pytest.mark.parametrize(
    ("lines", "first"),
    [
        (["0 30 20 10 40", "1 40 8 60 40"], "a.txt:1: x2 = 10 must be greater"),  # a slip among good lines
        (["0 0.5 0.5 0.2 0.3", "1 4 8 60 40"], "a.txt:1: x2 = 0.2 must be greater"),
        (["1 4 8 30 40", "0 60 40 10 10"], "b.x.txt:1: x2 = 10 must be greater"),  # corners swapped
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


def test_boxes_that_could_be_of_either_form_are_asked_about(root: Path) -> None:
    either = ["0 2 3 20 30", "1 1 2 30 33", "0 5 6 40 30", *["1 4 4 30 20", "0 3 6 12 20"] * 3]
    _annotate(root, either)
    found = survey(root)
    assert found.problems == []
    (note,) = found.notes
    assert note.startswith(f"{root / 'annotations'}: all 9 lines are read as corners, ")
    _annotate(root, [*either, "0 30 20 60 40"])
    assert survey(root).notes == []
    _annotate(root, either[:5])
    assert survey(root).notes == []


@pytest.mark.parametrize(("bare", "asks"), [(1, False), (2, False), (3, True), (4, True)])
def test_many_missing_annotation_files_are_asked_about(root: Path, bare: int, asks: bool) -> None:
    (root / "annotations" / "d.txt").touch()
    for name in ("a", "b.x", "c", "d")[:bare]:
        (root / "annotations" / f"{name}.txt").unlink()
    found = survey(root)
    assert [clip.annotated for clip in found.clips] == [False] * bare + [True] * (4 - bare)
    expected = [f"{root / 'annotations'}: {bare} of 4 clips have no annotation file"] * asks
    assert [note[: len(expected[0])] for note in found.notes] == expected
    assert load_index(root).notes == tuple(found.notes)


def test_remarks_on_videos_are_notes_now_and_later(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = index_module.probe
    monkeypatch.setattr(index_module, "probe", lambda path: replace(real(path), remarks=(f"{path.name} is odd",)))
    notes = [f"{root / 'videos' / name}: {name} is odd" for name in ("a.mp4", "b.x.webm", "c.avi", "d.mkv")]
    assert survey(root).notes == notes
    monkeypatch.setattr(index_module, "probe", real)
    assert survey(root).notes == notes
    assert survey(root).problems == []
