"""If timestamps repeat or go back, in any container, all frames come in their order, at times that ascend."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from actdet.data.index import load_index
from actdet.errors import ActdetError, DataError
from actdet.video.decoding import decode_frames, stream_frames
from actdet.video.info import VideoInfo, probe
from actdet.video.readers import choose_reader
from actdet.video.timestamps import continue_times, is_orderly
from tests.actdet.video import videos
from tests.actdet.video.videos import B_FRAMES, numbered_frame, shown_number, shown_numbers, write_video

# How many frames each recording has.
PART = 24


def _part(path: Path, codec: str, options: dict[str, str], first: int, start: float = 0) -> Path:
    """Write `PART` frames from number `first` on, 25 a second; the clock of the recording begins at `start` seconds."""
    pictures = np.stack([numbered_frame(first + i, 64, 48) for i in range(PART)])
    pts = [round(1000 * start) + 40 * i for i in range(PART)] if start else None
    return write_video(path, codec, PART, pictures=pictures, options=options, pts=pts)


def _numbers(info: VideoInfo, indices: list[int] | range) -> list[int]:
    return shown_numbers(decode_frames(info, indices))


def _milliseconds(info: VideoInfo) -> list[int]:
    return [round(1000 * float((int(time) - int(info.pts[0])) * info.time_base)) for time in info.pts]


def _check_frames(info: VideoInfo, count: int) -> None:
    """Assert that the frames have the right numbers, however they are asked for."""
    assert _numbers(info, range(count)) == list(range(count))
    for wanted in ([count - 1], [PART, 3], list(range(0, count, 7)), [PART - 1, PART, PART + 1]):
        wanted = [index for index in wanted if index < count]
        assert _numbers(info, wanted) == wanted
    threaded = [shown_number(picture) for _, picture in stream_frames(info, range(count), threads=3)]
    assert threaded == list(range(count))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("reordered.ts", "libx264", B_FRAMES),
        ("plain.ts", "libx264", {"bf": "0"}),
        ("mpeg2.ts", "mpeg2video", {"bf": "2"}),
        ("hevc.ts", "libx265", {"x265-params": "log-level=none:bframes=3"}),
        ("mpeg2.mpg", "mpeg2video", {"bf": "2"}),
        ("reordered.mkv", "libx264", B_FRAMES),
        ("vp9.webm", "libvpx-vp9", {"g": "10"}),
    ],
)
def test_recordings_joined_by_cat_are_whole(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    # FFmpeg reads no third part of a Matroska file.
    count = 2 if name.endswith(("mkv", "webm")) else 3
    parts = [_part(tmp_path / f"{i}{name}", codec, options, i * PART) for i in range(count)]
    info = probe(videos.join(tmp_path / name, *parts))
    assert len(info.pts) == count * PART
    assert _milliseconds(info) == pytest.approx([40 * i for i in range(count * PART)], abs=2)
    assert info.seconds == pytest.approx(count * PART / 25, abs=0.01)
    often = " 2 times, first" if count == 3 else ""
    assert info.remarks == (f"its timestamps go back{often} at frame 24 (0.96 s); they were continued",)
    _check_frames(info, count * PART)


def test_joined_avi_files_are_whole(tmp_path: Path) -> None:
    """They have no timestamps, so frames are identified by their order."""
    parts = [_part(tmp_path / f"{i}.avi", "mpeg4", {}, i * PART) for i in range(3)]
    info = probe(videos.join(tmp_path / "joined.avi", *parts))
    assert _milliseconds(info) == [40 * i for i in range(3 * PART)]
    _check_frames(info, 3 * PART)


@pytest.mark.parametrize(
    ("name", "codec", "read"),
    [
        ("clip.mp4", "libx264", 1),
        ("clip.mov", "mpeg4", 1),
        ("clip.flv", "libx264", 1),
        ("clip.mkv", "libx264", 2),
        ("clip.webm", "libvpx-vp9", 2),
    ],
)
def test_what_is_joined_and_not_read_is_reported(tmp_path: Path, name: str, codec: str, read: int) -> None:
    """FFmpeg, and every player on it, stops at the end of the first such file, or of the second."""
    parts = [_part(tmp_path / f"{i}{name}", codec, {}, i * PART) for i in range(read + 1)]
    videos.join(tmp_path / "read", *parts[:read])
    info = probe(videos.join(tmp_path / name, *parts))
    place = (tmp_path / "read").stat().st_size
    assert info.remarks[-1] == f"another recording begins at byte {place} and is not read: split the file there"
    _check_frames(info, read * PART)
    assert not any("recording" in remark for remark in probe(tmp_path / "read").remarks)


@pytest.mark.parametrize("options", [B_FRAMES, {"bf": "0"}], ids=["reordered", "plain"])
@pytest.mark.parametrize(("first", "second"), [(10, 3), (0.5, 0.1), (7200, 0), (90000, 40000)])
def test_the_clock_of_the_second_recording_matters_not(
    tmp_path: Path, options: dict[str, str], first: float, second: float
) -> None:
    """Not even if no timestamp occurs twice, or if FFmpeg takes the step back for the end of the clock."""
    parts = [
        _part(tmp_path / f"{i}.ts", "libx264", options, i * PART, start) for i, start in enumerate((first, second))
    ]
    info = probe(videos.join(tmp_path / "both.ts", *parts))
    assert _milliseconds(info) == pytest.approx([40 * i for i in range(2 * PART)], abs=2)
    assert info.remarks == ("its timestamps go back at frame 24 (0.96 s); they were continued",)
    _check_frames(info, 2 * PART)


@pytest.mark.parametrize("options", [B_FRAMES, {"bf": "0"}], ids=["reordered", "plain"])
def test_a_clock_of_33_bits_that_begins_anew_is_nothing_unusual(tmp_path: Path, options: dict[str, str]) -> None:
    """Against the same recording of another hour; FFmpeg's writer begins 1.4 s later."""
    path = _part(tmp_path / "wrap.ts", "libx264", options, 0, 2**33 / 90000 - 1.4 - 0.5)
    info = probe(path)
    assert _milliseconds(info) == pytest.approx([40 * i for i in range(PART)], abs=2)
    assert info.remarks == ()
    _check_frames(info, PART)
    joined = probe(videos.join(tmp_path / "twice.ts", path, _part(tmp_path / "b.ts", "libx264", options, PART, 50000)))
    assert len(joined.pts) == 2 * PART
    _check_frames(joined, 2 * PART)


@pytest.mark.parametrize(
    ("name", "options", "same"),
    [
        ("plain.mkv", {"bf": "0"}, {7: 6}),
        ("plain.mkv", {"bf": "0"}, {7: 6, 8: 6, 20: 19}),
        ("plain.mkv", {"bf": "0"}, {1: 0, 23: 22}),
        ("reordered.mkv", B_FRAMES, {5: 4}),
        ("reordered.mkv", B_FRAMES, {6: 7}),
        ("reordered.mkv", B_FRAMES, {4: 5, 9: 8, 13: 12}),
        ("reordered.mp4", B_FRAMES, {6: 7}),
        ("reordered.mp4", B_FRAMES, {10: 9}),
        ("plain.flv", {"bf": "0"}, {10: 9}),
    ],
)
def test_frames_of_one_timestamp_share_its_time(
    tmp_path: Path, name: str, options: dict[str, str], same: dict[int, int]
) -> None:
    path = _part(tmp_path / name, "libx264", options, 0)
    ticks = int(probe(path).pts[1] - probe(path).pts[0])
    start = int(probe(path).pts[0])

    def time_of(pts: int) -> int:
        number = round((pts - start) / ticks)
        return start + same.get(number, number) * ticks

    info = probe(videos.restamp(path, time_of))
    times = _milliseconds(info)
    assert len(times) == PART
    assert (np.diff(times) > 0).all()
    # No frame is further off than its neighbors are, and what follows keeps its time.
    assert np.abs(np.array(times) - 40 * np.arange(PART)).max() <= 40 * len(same)
    assert times[-2:] == pytest.approx([40 * (PART - 2), 40 * (PART - 1)], abs=22)
    assert len(info.remarks) == 1
    assert "repeat" in info.remarks[0]
    _check_frames(info, PART)


@pytest.mark.parametrize("options", [B_FRAMES, {"bf": "0", "g": "5"}], ids=["reordered", "plain"])
def test_a_camera_whose_clock_is_set_back(tmp_path: Path, options: dict[str, str]) -> None:
    path = _part(tmp_path / "camera.flv", "libx264", options | {"sc_threshold": "0"}, 0)
    since = 12 if options is B_FRAMES else 10
    info = probe(videos.turn_back_flv(path, 200, since))
    assert _milliseconds(info) == pytest.approx([40 * i for i in range(PART)], abs=2)
    assert info.remarks == (f"its timestamps go back at frame {since} ({since / 25:.2f} s); they were continued",)
    assert len(info.seek_points) == 0
    _check_frames(info, PART)


def test_damage_in_joined_recordings_is_reported(tmp_path: Path) -> None:
    """By the reader, when it is met: the frames behind it still have the right numbers."""
    parts = [_part(tmp_path / f"{i}.mkv", "libx264", B_FRAMES, i * PART) for i in range(2)]
    whole = probe(videos.join(tmp_path / "whole.mkv", *parts))
    info = probe(videos.corrupt(videos.join(tmp_path / "both.mkv", *parts), range(16, 18)))
    assert len(info.pts) == len(whole.pts) == 2 * PART
    assert _numbers(info, range(12)) == list(range(12))
    with pytest.raises(DataError, match=r"only the first \d+ of its 48 frames decode"):
        decode_frames(info, range(2 * PART))


def test_a_file_that_shrank_since_it_was_read_is_reported(tmp_path: Path) -> None:
    parts = [_part(tmp_path / f"{i}.ts", "libx264", B_FRAMES, i * PART) for i in range(2)]
    info = probe(videos.join(tmp_path / "both.ts", *parts))
    with pytest.raises(DataError, match="only the first 24 of its 48 frames decode"):
        decode_frames(replace(info, path=str(parts[0])), [40])


def test_the_index_keeps_what_maps_packets_to_frames(tmp_path: Path) -> None:
    for folder in ("videos", "annotations"):
        (tmp_path / folder).mkdir()
    parts = [_part(tmp_path / f"{i}.ts", "libx264", B_FRAMES, i * PART) for i in range(2)]
    videos.join(tmp_path / "videos" / "both.ts", *parts)
    (tmp_path / "annotations" / "both.txt").write_text("")
    load_index(tmp_path)
    (clip,) = load_index(tmp_path).clips
    assert clip.video.remarks == probe(tmp_path / "videos" / "both.ts").remarks != ()
    _check_frames(clip.video, 2 * PART)


@pytest.mark.parametrize(
    ("stamps", "durations", "wrap", "expected"),
    [
        ([0, 40, 80, 0, 40], 0, 0, [0, 40, 80, 120, 160]),
        ([0, 40, 80, 0, 40], 30, 0, [0, 40, 80, 110, 150]),
        ([500, 0, 40], 0, 0, [500, 540, 580]),
        ([0, 40, 40, 80], 0, 0, [0, 40, 60, 80]),
        ([0, 0, 0, 120], 0, 0, [0, 40, 80, 120]),
        ([0, 40, 80, 80, 80], 0, 0, [0, 40, 80, 120, 160]),
        # Ticks too few for what shares them, and a gap that is no part of a frame.
        ([0, 1, 1, 2, 3], 0, 0, [0, 1, 2, 3, 4]),
        ([0, 1, 1, 1, 3, 4], 0, 0, [0, 1, 2, 3, 4, 5]),
        ([0, 40, 40, 80, 120, 90000, 90040], 0, 0, [0, 40, 60, 80, 120, 90000, 90040]),
        ([0, 40, 80, 80, 90000], 0, 0, [0, 40, 80, 120, 90000]),
        ([7, 7, 7], 0, 0, [7, 32, 57]),
        ([7], 0, 0, [7]),
        ([1000, 1020, 16, 36], 0, 1024, [1000, 1020, 1040, 1060]),
        ([1000, 1020, 1040, 36], 0, 1024, [1000, 1020, 1040, 1060]),
        ([1000, 1020, 40, 60 + 1024], 0, 1024, [1000, 1020, 1064, 1084]),
        ([0, 20, 1000, 1020], 0, 1024, [0, 20, 40, 60]),
    ],
)
def test_times_are_continued(stamps: list[int], durations: int, wrap: int, expected: list[int]) -> None:
    times = continue_times(np.array(stamps), np.full(len(stamps), durations), 25, wrap).times
    assert times.tolist() == expected


def test_any_timestamps_give_ascending_times() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        count = rng.integers(1, 40)
        most = rng.choice([2, 10, 1000, 2**40])
        stamps = rng.integers(-most, most, count)
        wrap = int(rng.choice([0, 2**33]))
        found = continue_times(stamps, rng.integers(0, 3, count), int(rng.integers(1, 50)), wrap)
        assert (np.diff(found.times) > 0).all()
        assert found.times[0] == stamps[0]
        if not wrap:
            steps = np.diff(stamps)
            assert (found.back - 1).tolist() == np.flatnonzero(steps < 0).tolist()
            assert (found.repeated - 1).tolist() == np.flatnonzero(steps == 0).tolist()


@pytest.mark.parametrize(
    ("pts", "dts", "wrap", "expected"),
    [
        ([0, 120, 40, 80], [-40, 0, 40, 80], 0, True),
        ([0, 120, 40, 80], [None, None, 0, 40], 0, True),
        ([0, 40, 40], [0, 40, 80], 0, False),
        ([0, 40, 10], [0, 40, 10], 0, False),
        ([100, 120, 1100], [100, 120, 1100], 0, True),
        ([100, 120, 1100], [100, 120, 1100], 1024, False),
    ],
)
def test_what_is_orderly(pts: list[int], dts: list[int | None], wrap: int, expected: bool) -> None:
    assert is_orderly(np.array(pts), dts, wrap) is expected


def test_dali_does_not_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr("actdet.video.readers.find_spec", lambda name: object())
    pts = np.arange(3)
    good = VideoInfo("v.webm", 64, 48, 0, Fraction(1, 25), pts, 3, "vp9", True, 0)
    assert choose_reader("dali", torch.device("cpu"), [good]) == ("dali-cpu", "asked for")
    for bad, problem in ((replace(good, places=pts), "repeat or go back"), (replace(good, alone=False), "streams")):
        with pytest.raises(ActdetError, match=problem):
            choose_reader("dali", torch.device("cpu"), [bad])
