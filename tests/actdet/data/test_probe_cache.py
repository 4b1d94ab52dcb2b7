"""What is known of videos is kept between runs, as long as it holds; a damaged or hostile file counts as empty."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actdet.data import probe_cache
from actdet.data.index import load_index
from actdet.errors import DataError
from tests.actdet.video.videos import write_video

CACHE = ".actdet-index.json"
VERSION = probe_cache._VERSION


def test_only_a_changed_file_is_probed_again(root: Path, probes: list[str]) -> None:
    first = load_index(root)
    assert sorted(probes) == ["a.mp4", "b.x.webm", "c.avi", "d.mkv"]
    written = (root / CACHE).stat().st_mtime_ns

    probes.clear()
    second = load_index(root)
    assert probes == []
    assert (root / CACHE).stat().st_mtime_ns == written
    for old, new in zip(first.clips, second.clips, strict=True):
        before = dict(vars(old.video))
        after = dict(vars(new.video))
        for name in ("pts", "seek_points", "places"):
            assert before.pop(name).tolist() == after.pop(name).tolist()
        assert before == after

    write_video(root / "videos" / "c.avi", "mpeg4", frames=9)
    os.utime(root / "videos" / "d.mkv", ns=(1, 1))
    assert [len(clip.video.pts) for clip in load_index(root).clips] == [3, 4, 9, 6]
    assert sorted(probes) == ["c.avi", "d.mkv"]


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
def test_a_damaged_file_is_rebuilt(root: Path, probes: list[str], damage: Callable[[Any], str]) -> None:
    load_index(root)
    good = json.loads((root / CACHE).read_text())
    (root / CACHE).write_text(damage(json.loads(json.dumps(good))))
    probes.clear()
    assert [len(clip.video.pts) for clip in load_index(root).clips] == [3, 4, 5, 6]
    assert len(probes) == 4
    assert json.loads((root / CACHE).read_text()) == good


def test_in_a_read_only_folder_nothing_is_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The superuser may write anywhere, so the refusal of a read-only disk is simulated.
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert len(load_index(root).clips) == 4
    assert sorted(path.name for path in root.iterdir()) == ["annotations", "videos"]


def test_a_full_disk_is_an_error_and_leaves_no_partial_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(DataError, match="cannot be written: No space left"):
        load_index(root)
    assert sorted(path.name for path in root.iterdir()) == ["annotations", "videos"]


BAD_FACTS: dict[str, Any] = {
    "width": ["64", 64.0, True, None, 0, -64, 2**40],
    "rotation": [45, -90, "0"],
    "end": [0, 1e300, 2**70, "9"],
    "codec": [None, 5, ["h264"]],
    "pixel_format": [None, 5, ["yuv420p"]],
    "has_timestamps": [1, "yes", None],
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
    "seek_points": [[3], [-1], [1, 0], [0, 0], [0.0], ["0"], {}, None],
    "places": [[0, 1], [0, 1, 1], [0, 1, 3], [-2, 0, 1, 2], [0.0, 1, 2], ["0"], {}, None],
    "alone": [1, None],
    "remarks": ["x", [1], ["two\nlines"], {"a": 1}],
}


@pytest.mark.parametrize(("fact", "value"), [(fact, value) for fact, values in BAD_FACTS.items() for value in values])
def test_a_video_with_an_impossible_fact_is_probed_again(
    tmp_path: Path, probes: list[str], fact: str, value: Any
) -> None:
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


def _stored(videos: Any) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps({"version": VERSION, "videos": videos}))


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
        _stored([["a.mp4", {}]]),
        _stored(None),
        _stored({"a.mp4": [], "b.x.webm": "x", "c.avi": 5}),
    ],
    ids=["64 GiB", "FIFO", "folder", "device", "loop", "nested", "number", "pairs", "null", "no entries"],
)
def test_a_hostile_file_counts_as_empty(root: Path, probes: list[str], hostile: Callable[[Path], object]) -> None:
    hostile(root / CACHE)
    assert [len(clip.video.pts) for clip in load_index(root).clips] == [3, 4, 5, 6]
    assert len(probes) == 4


def test_what_a_killed_process_left_of_it_goes(root: Path) -> None:
    left = root / f".{Path(CACHE).stem}.{2**22 + 1}.partial.json"
    left.write_text("half")
    load_index(root)
    assert not left.exists()
    assert (root / CACHE).is_file()
