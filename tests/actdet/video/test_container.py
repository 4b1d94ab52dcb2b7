"""The stream that players show is read, and a file that is no video is reported in one line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.video.stream import VideoStream

from actdet.errors import DataError
from actdet.video.decoding import decode_frames
from actdet.video.info import probe
from tests.actdet.video.videos import numbered_frame, shown_numbers, write_sound, write_video


def _write_tracks(path: Path, *shown: tuple[str, int, int], cover: str = "libx264") -> Path:
    """Write a file of several video streams.

    Args:
        path: The file.
        shown: Of each stream the disposition, the number of the first frame, and how many frames there are.
        cover: The codec of streams of a single frame.
    """
    with av.open(str(path), "w") as container:
        streams = []
        for disposition, _, count in shown:
            codec = cover if count == 1 else "libx264"
            stream = container.add_stream(codec, rate=25)
            assert isinstance(stream, VideoStream)
            stream.width = 64
            stream.height = 48
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = Disposition[disposition] if disposition else Disposition(0)
            streams.append(stream)

        for stream, (_, first, count) in zip(streams, shown, strict=True):
            for number in range(first, first + count):
                picture = numbered_frame(number, 64, 48)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ([("", 0, 20), ("default", 100, 20)], 100),
        ([("default", 0, 20), ("", 100, 20)], 0),
        ([("", 0, 20), ("", 50, 30), ("default", 100, 20)], 100),
        ([("default", 0, 20), ("default", 100, 30)], 0),
        ([("", 0, 9), ("", 100, 30)], 0),
    ],
)
def test_the_stream_that_players_show_is_read(
    tmp_path: Path, suffix: str, shown: list[tuple[str, int, int]], expected: int
) -> None:
    """The default one, or the first of several, as mpv and VLC do. In MP4, FFmpeg always marks one as the default."""
    info = probe(_write_tracks(tmp_path / f"several.{suffix}", *shown))

    count = next(count for _, first, count in shown if first == expected)
    assert shown_numbers(decode_frames(info, range(count))) == list(range(expected, expected + count))
    assert len(info.pts) == count
    assert shown_numbers(decode_frames(info, [count - 1])) == [expected + count - 1]

    assert not info.alone
    number = 1 + [first for _, first, _ in shown].index(expected)
    assert info.remarks == (f"has {len(shown)} video streams; only number {number}, which players show, is read",)


@pytest.mark.parametrize(("codec", "cover"), [("mjpeg", "attached_pic"), ("mjpeg", "default"), ("libx264", "default")])
def test_cover_art_is_never_the_video(tmp_path: Path, codec: str, cover: str) -> None:
    """Not even if it comes first and is not marked as a cover. A cover that is marked needs no remark."""
    info = probe(_write_tracks(tmp_path / "cover.mp4", (cover, 200, 1), ("default", 0, 20), cover=codec))
    assert shown_numbers(decode_frames(info, range(20))) == list(range(20))
    assert not info.alone
    assert len(info.remarks) == (cover != "attached_pic")


def test_one_stream_is_alone(tmp_path: Path) -> None:
    assert probe(write_video(tmp_path / "sound.mp4", frames=5, sound=True)).alone


def test_sound_that_begins_late_is_no_error(tmp_path: Path) -> None:
    """PyAV does not know streams that FFmpeg finds only after it has opened the file."""
    path = write_video(tmp_path / "late.flv", frames=200)
    sound = bytes([8, 0, 0, 4]) + (7960).to_bytes(3, "big") + bytes(4) + b"\x2f\0\0\0"
    with open(path, "ab") as file:
        file.write(sound + len(sound).to_bytes(4, "big"))
    info = probe(path)
    assert shown_numbers(decode_frames(info, range(200))) == list(range(200))


def test_a_colon_in_a_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "clip.webm", "libvpx-vp9", frames=3).rename(tmp_path / "12:30.webm")
    monkeypatch.chdir(tmp_path)
    assert len(probe("12:30.webm").pts) == 3


def test_importing_the_room_leaves_the_log_of_ffmpeg_alone() -> None:
    """A program that wants to see what FFmpeg says still sees it after it has imported actdet."""
    code = """
import av.logging
av.logging.set_level(av.logging.ERROR)
from actdet.video import damage, encoding, readers
print(av.logging.get_level() == av.logging.ERROR)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_codec_threads_and_the_log_of_ffmpeg_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """torchvision 0.24 turns the log on when it is imported, and closing a damaged video then waited forever."""
    path = write_video(tmp_path / "clip.mp4", frames=60, options={"g": "12"})
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 200
    data[start:-2000:40] = bytes(len(data[start:-2000:40]))
    path.write_bytes(data)
    code = f"""
import av.logging
from contextlib import suppress
from actdet.errors import DataError
from actdet.video.decoding import stream_frames
from actdet.video.info import probe
av.logging.set_level(av.logging.ERROR)
info = probe({str(path)!r})
for number in range(200):
    with suppress(DataError):
        frames = stream_frames(info, range(60), threads=3)
        for _ in range(number % 7):
            next(frames)
        frames.close()
print("ended")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout == "ended\n", done.stderr


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _write_list(path: Path, text: str) -> Path:
    """Write a list of other files. It names a good video of its folder, beside a pipe that would block."""
    write_video(path.with_name("part.ts"), frames=3)
    os.mkfifo(path.with_name("part.sub"))
    path.write_text(text.format("part.ts"))
    return path


def _make_socket(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
    return path


def _png() -> bytes:
    codec = av.CodecContext.create("png", "w")
    codec.width = 16
    codec.height = 16
    codec.pix_fmt = "rgb24"
    codec.time_base = Fraction(1, 25)
    return b"".join(map(bytes, codec.encode(av.VideoFrame(16, 16, "rgb24"))))


DASH = (
    '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet><Representation id="1">'
    "<BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>"
)

# What is made in place of a video, by the path of a file that does not exist yet, and what the message says.
NO_VIDEOS: dict[str, tuple[Callable[[Path], Path | None], str]] = {
    "missing": (lambda path: None, "file not found"),
    "empty": (lambda path: _write(path, b""), "empty"),
    "folder": (lambda path: path.parent, "not a file"),
    "pipe": (lambda path: os.mkfifo(path), "not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a file"),
    "socket": (_make_socket, "not a file"),
    "noise": (lambda path: _write(path, np.random.default_rng(0).bytes(9000)), "cannot be opened as a video"),
    "text": (lambda path: _write(path, b"not a video\n" * 99), "cannot be opened as a video"),
    "sound": (write_sound, "no video stream, only audio"),
    "picture": (lambda path: _write(path, _png()), "still picture"),
    # The file that each of these lists names exists, so whatever opens the list would find pictures.
    "playlist": (
        lambda path: _write_list(path, "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"),
        "is a list of other files",
    ),
    "playlist without end": (
        lambda path: _write_list(path, "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n"),
        "is a list of other files",
    ),
    "playlist of playlists": (
        lambda path: _write_list(path, "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{}\n"),
        "is a list of other files",
    ),
    "concat": (lambda path: _write_list(path, "ffconcat version 1.0\nfile {}\n"), "is a list of other files"),
    "dash": (lambda path: _write_list(path, DASH), "is a list of other files"),
    "session": (
        lambda path: _write_list(path, "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=-\nt=0 0\nm=video 5000 RTP/AVP 96\n"),
        "is a list of other files",
    ),
    "subtitles": (
        lambda path: _write_list(path.with_name("part.idx"), "# VobSub index file, v7 (do not modify this line!)\n"),
        "is a list of other files",
    ),
}


@pytest.mark.parametrize("kind", NO_VIDEOS)
def test_what_is_no_video_is_reported_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str) -> None:
    make, expected = NO_VIDEOS[kind]
    path = make(tmp_path / "clip.mp4") or tmp_path / "clip.mp4"
    capfd.readouterr()
    with pytest.raises(DataError, match=expected) as caught:
        probe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
