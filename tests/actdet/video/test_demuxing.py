"""Only frames that are meant to be shown are counted, and a truncated file is reported in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import pytest

from actdet.errors import DataError
from actdet.video.decoding import decode_frames
from actdet.video.info import probe
from tests.actdet.video import videos
from tests.actdet.video.videos import shown_numbers, write_video

# An MP4 file whose index comes first, so that what is cut off are frames.
FAST = {"container_options": {"movflags": "faststart"}}
FRAGMENTS = {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "options": {"g": "8"}}

# The name of a file, its codec and settings, the share of it that is left, and what the message says.
CUT: dict[str, tuple[str, str, dict[str, Any], float, str]] = {
    "mp4": ("clip.mp4", "libx264", {}, 0.6, "cut off"),
    "fast mp4": (
        "clip.mp4",
        "libx264",
        FAST,
        0.7,
        r"the header says 40 frames but only \d+ are there; the file is truncated",
    ),
    "mp4 by a byte": (
        "clip.mp4",
        "libx264",
        FAST,
        0.9999,
        "the header says 40 frames but only 39 are there; the file is truncated",
    ),
    "fragments": ("clip.mp4", "libx264", FRAGMENTS, 0.6, "truncated"),
    "webm": (
        "clip.webm",
        "libvpx-vp9",
        {},
        0.6,
        r"the header says 1.60 s but the frames end at [01]\.\d\d s; the file is truncated",
    ),
    "avi": (
        "clip.avi",
        "mpeg4",
        {},
        0.8,
        r"the header says 40 frames but only \d+ are there; the file is truncated",
    ),
}


@pytest.mark.parametrize("kind", CUT)
def test_a_truncated_file_is_reported_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str) -> None:
    name, codec, settings, share, expected = CUT[kind]
    path = videos.cut(write_video(tmp_path / name, codec, **settings), share)
    capfd.readouterr()
    with pytest.raises(DataError, match=expected) as caught:
        probe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_trimmed_video_ends_where_its_edit_list_says(tmp_path: Path) -> None:
    path = write_video(tmp_path / "trimmed.mp4", frames=40, options={"g": "5", "bf": "2"})
    info = probe(videos.trim(path, seconds=0.8))
    assert 20 <= len(info.pts) <= 21
    assert shown_numbers(decode_frames(info, range(20))) == list(range(20))


def test_hidden_frames_of_vp8_are_no_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.webm", "libvpx", frames=20, options={"deadline": "realtime"})
    info = probe(videos.hide(path, 12))
    assert shown_numbers(decode_frames(info, range(19))) == [n for n in range(20) if n != 12]


def test_a_recording_that_begins_between_keyframes_starts_at_the_first(tmp_path: Path) -> None:
    path = write_video(tmp_path / "camera.ts", frames=30, options={"g": "10", "bf": "0", "sc_threshold": "0"})
    with av.open(str(path)) as source, av.open(str(tmp_path / "late.ts"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if number >= 4 and packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    info = probe(tmp_path / "late.ts")
    assert shown_numbers(decode_frames(info, range(len(info.pts)))) == list(range(10, 30))


def test_mirrors_are_refused(tmp_path: Path) -> None:
    path = videos.set_matrix(write_video(tmp_path / "selfie.mp4", frames=3), -1, 0, 0, 1)
    with pytest.raises(DataError, match="mirrored"):
        probe(path)
