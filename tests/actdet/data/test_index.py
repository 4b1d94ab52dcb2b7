"""The index finds what is in a data set and what is wrong with it, and remembers only what still holds."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from videos import corrupt, cut, set_matrix, write_video

from actdet.data import index as index_module
from actdet.data.index import find_problems, load_index
from actdet.data.video import VideoInfo
from actdet.errors import DataError

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
    np.testing.assert_array_equal(boxes[0], np.float32([[0.5, 0.625, 0.5, 0.75], [0.5, 0.5, 1, 1]]))
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
        (videos / "notes.md", "cannot be opened as a video"),
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
