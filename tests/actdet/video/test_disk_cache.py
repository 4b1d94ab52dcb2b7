"""The disk cache gives the frames that decoding gives, keeps to its limit, and survives crashes and full disks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from actdet.errors import ActdetError, DataError
from actdet.video import disk_cache as disk
from actdet.video.decoding import ClipRequest, decode_frames
from actdet.video.disk_cache import DiskCache, cache_folder
from actdet.video.info import VideoInfo, probe
from actdet.video.pyav import PyAVReader
from actdet.video.readers import choose_reader
from actdet.video.sampling import sample_frames
from tests.actdet.video.filling import CLIP_BYTES, SIZE, fill
from tests.actdet.video.videos import corrupt, write_video


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[VideoInfo]:
    """Four videos of 40 frames."""
    folder = tmp_path_factory.mktemp("clips")
    return [probe(write_video(folder / f"{n}.mp4", frames=40, size=(64, 48 + 2 * n))) for n in range(4)]


def test_a_clip_is_decoded_once_and_read_afterwards(
    clips: list[VideoInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = DiskCache(tmp_path / "new" / "clips", 2**30)
    first = cache.frames(clips[0], SIZE)
    monkeypatch.setattr(disk, "decode_frames", None)
    for again in (cache, DiskCache(tmp_path / "new" / "clips", 2**30)):
        np.testing.assert_array_equal(again.frames(clips[0], SIZE), first)
    np.testing.assert_array_equal(first, decode_frames(clips[0], range(40), SIZE))

    # Another clip, or another size, is not in the cache and would have to be decoded.
    with pytest.raises(TypeError):
        cache.frames(clips[1], SIZE)
    with pytest.raises(TypeError):
        cache.frames(clips[0], (32, 33))


def test_a_file_that_changed_is_decoded_again(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "clips", 2**30)
    path = write_video(tmp_path / "a.mp4", frames=10)
    before = cache.frames(probe(path), SIZE)
    other = np.full((10, 48, 64, 3), 200, np.uint8)
    write_video(path, frames=10, pictures=other)
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 10**9))
    after = cache.frames(probe(path), SIZE)
    assert np.abs(after.astype(int) - 200).max() < 5
    assert np.abs(before.astype(int) - after).max() > 50
    assert len(list((tmp_path / "clips").glob("*.npy"))) == 2


def test_a_copy_of_a_file_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", frames=10)
    cache = DiskCache(tmp_path / "clips", 2**30)
    frames = cache.frames(probe(path), SIZE)
    copy = probe(path.rename(tmp_path / "b.mp4"))
    monkeypatch.setattr(disk, "decode_frames", None)
    np.testing.assert_array_equal(cache.frames(copy, SIZE), frames)


def test_it_keeps_to_its_limit_and_forgets_what_was_not_used_for_longest(
    clips: list[VideoInfo], tmp_path: Path
) -> None:
    limit = 2 * (CLIP_BYTES + 4096)
    cache = DiskCache(tmp_path, limit)

    def kept() -> set[int]:
        names = {cache._path(video, SIZE).name: number for number, video in enumerate(clips)}
        found = {entry.name for entry in tmp_path.glob("*.npy")}
        assert sum(entry.stat().st_size for entry in tmp_path.iterdir()) <= limit
        return {names[name] for name in found}

    # Clip 0 is used again before clip 2 needs room, so clip 1 goes.
    for number in (0, 1, 0, 2):
        cache.frames(clips[number], SIZE)
        time.sleep(0.02)
    assert kept() == {0, 2}
    cache.frames(clips[3], SIZE)
    assert kept() == {2, 3}

    # A smaller limit takes effect at once.
    DiskCache(tmp_path, limit // 2)
    assert kept() == {3}

    # A clip that is larger than the limit is decoded and not kept.
    small = DiskCache(tmp_path / "small", CLIP_BYTES)
    np.testing.assert_array_equal(small.frames(clips[0], SIZE), decode_frames(clips[0], range(40), SIZE))
    assert [entry.name for entry in (tmp_path / "small").iterdir()] == ["lock"]


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00" + b"v" * 200])
def test_a_file_that_is_not_a_clip_is_replaced(clips: list[VideoInfo], tmp_path: Path, content: bytes) -> None:
    cache = DiskCache(tmp_path, 2**30)
    frames = np.array(cache.frames(clips[0], SIZE))
    (path,) = tmp_path.glob("*.npy")
    path.write_bytes(content)
    np.testing.assert_array_equal(cache.frames(clips[0], SIZE), frames)
    np.testing.assert_array_equal(np.load(path), frames)

    # A pickle could run anything when it is loaded, so it must not be.
    np.save(path, np.zeros((3, 3), object), allow_pickle=True)
    np.testing.assert_array_equal(cache.frames(clips[0], SIZE), frames)


def test_what_a_crash_left_is_removed(clips: list[VideoInfo], tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 2**30)
    dead = subprocess.Popen(["true"])
    dead.wait()
    theirs, alive = (tmp_path / f".0123-32x32.{pid}.partial.npy" for pid in (dead.pid, os.getppid()))
    for path in (theirs, alive):
        path.write_bytes(bytes(100))
    cache.frames(clips[0], SIZE)
    assert not theirs.exists()
    assert alive.exists()


def test_processes_share_it_and_one_may_be_killed(clips: list[VideoInfo], tmp_path: Path) -> None:
    """Three processes fill a folder with room for three of the four clips, so all of them keep writing and removing."""
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=fill, args=(tmp_path, clips, rounds)) for rounds in (6, 6, 10**6)]
    for process in processes:
        process.start()
    for process in processes[:2]:
        process.join(120)
    os.kill(processes[2].pid or 0, signal.SIGKILL)
    processes[2].join()
    assert [process.exitcode for process in processes] == [0, 0, -9]
    fill(tmp_path, clips, 1)
    assert sum(entry.stat().st_size for entry in tmp_path.iterdir()) <= 3 * (CLIP_BYTES + 4096)
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/clips: cannot be written to: Not a directory"):
        DiskCache(tmp_path / "file" / "clips", 2**30)


def test_a_full_disk_does_not_stop_a_reader(
    clips: list[VideoInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    cache = DiskCache(tmp_path, 2**30)
    monkeypatch.setattr(np, "save", full)
    np.testing.assert_array_equal(cache.frames(clips[0], SIZE), decode_frames(clips[0], range(40), SIZE))
    assert [entry.name for entry in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_reader_with_it_gives_the_same_frames(clips: list[VideoInfo], tmp_path: Path, workers: int) -> None:
    bad = probe(corrupt(write_video(tmp_path / "bad.webm", "libvpx-vp9"), range(20, 24)))
    requests = [ClipRequest(video, sample_frames(video, 8)) for video in (*clips, bad, clips[0])]
    with PyAVReader(SIZE, workers, DiskCache(tmp_path / "clips", 2**30)) as reader:
        for _ in range(2):
            for (video, indices), answer in zip(requests, reader.read(requests), strict=True):
                if video is bad:
                    assert isinstance(answer, DataError)
                else:
                    np.testing.assert_array_equal(np.asarray(answer), decode_frames(video, indices, SIZE))
    assert len(list((tmp_path / "clips").glob("*.npy"))) == 4


def test_only_pyav_keeps_clips_on_the_disk() -> None:
    assert choose_reader("auto", torch.device("cuda"), disk_cache=True) == (
        "pyav",
        "it keeps decoded clips on the disk",
    )
    with pytest.raises(ActdetError, match="reader dali keeps nothing on the disk: use reader pyav, or no --disk-cache"):
        choose_reader("dali", torch.device("cuda"), disk_cache=True)


def test_the_environment_says_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ACTDET_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache/actdet/clips"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/actdet/clips"
    monkeypatch.setenv("ACTDET_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own/clips"
