"""Frames are the right ones in every container, and every damaged file is told in one line."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from actdet.errors import DataError
from actdet.video import decoding as video
from actdet.video.decoding import VideoInfo, _frames, decode_frames, probe, sample_frames, stream_frames
from tests.actdet.video import videos
from tests.actdet.video.videos import shown_number, write_video

FRAMES = 40
B_FRAMES = {"bf": "3", "b_strategy": "0", "g": "12"}
# Milliseconds between frames that no frame rate gives; the first frame shows late.
UNEVEN = [500 + 40 * i + 37 * (i % 2) + (1500 if i > 25 else 0) for i in range(FRAMES)]

GOOD: dict[str, tuple[str, dict]] = {
    "h264.mp4": ("libx264", {}),
    "bframes.mp4": ("libx264", {"options": B_FRAMES}),
    "bframes.mkv": ("libx264", {"options": B_FRAMES}),
    "bframes.avi": ("libx264", {"options": B_FRAMES}),
    "bframes.ts": ("libx264", {"options": B_FRAMES}),
    "bframes.h264": ("libx264", {"options": B_FRAMES}),
    "uneven.mp4": ("libx264", {"options": B_FRAMES, "pts": UNEVEN}),
    "uneven.mkv": ("libx264", {"options": B_FRAMES, "pts": UNEVEN}),
    "uneven.webm": ("libvpx-vp9", {"pts": UNEVEN}),
    "odd.mkv": ("libx264", {"size": (97, 55), "options": {"preset": "ultrafast"}}),
    "odd.webm": ("libvpx-vp9", {"size": (97, 55)}),
    "mpeg4.avi": ("mpeg4", {"options": {"bf": "2"}}),
    "mjpeg.avi": ("mjpeg", {}),
    "sound.mp4": ("libx264", {"sound": True}),
    "fragments.mp4": (
        "libx264",
        {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "options": B_FRAMES},
    ),
    "short.mp4": ("libx264", {"frames": 7}),
    "single.mp4": ("libx264", {"frames": 1}),
    "single.webm": ("libvpx-vp9", {"frames": 1}),
}


def write(folder: Path, name: str) -> Path:
    codec, settings = GOOD[name]
    if "x264" in codec and settings.get("size", (0, 0))[0] % 2:
        settings = settings | {"size": (98, 56)}
    return write_video(folder / name, codec, **({"frames": FRAMES} | settings))


def numbers(pictures: np.ndarray) -> list[int]:
    return [shown_number(picture) for picture in pictures]


@pytest.mark.parametrize("name", GOOD)
def test_every_index_gives_the_frame_of_that_number(tmp_path: Path, name: str) -> None:
    info = probe(write(tmp_path, name))
    count = GOOD[name][1].get("frames", FRAMES)
    assert len(info.pts) == count
    assert numbers(decode_frames(info, range(count))) == list(range(count))
    wanted = [count - 1, 0, count // 2, count // 2, 0]
    assert numbers(decode_frames(info, wanted, (60, 80))) == wanted
    assert [index for index, _ in stream_frames(info, iter([0, 0, count // 2]), (8, 8))] == [0, 0, count // 2]


# Codec, options, frames that decoding can begin with, and how many it gives on the way to frame 98.
TWENTIES = [0, 20, 40, 60, 80]
GROUPS: dict[str, tuple[str, dict[str, str], list[int], int]] = {
    "closed.mp4": ("libx264", {"g": "20", "sc_threshold": "0", "bf": "3"}, TWENTIES, 15),
    "closed.mkv": ("libx264", {"g": "20", "sc_threshold": "0", "bf": "3"}, TWENTIES, 15),
    "closed.ts": ("libx264", {"g": "20", "sc_threshold": "0", "bf": "3"}, [], 70),
    "closed.avi": ("libx264", {"g": "20", "sc_threshold": "0", "bf": "3"}, [], 99),
    "open.mp4": ("libx264", {"g": "20", "sc_threshold": "0", "bf": "3", "x264-params": "open-gop=1"}, [0], 70),
    "refresh.mp4": ("libx264", {"g": "20", "sc_threshold": "0", "bf": "0", "x264-params": "intra-refresh=1"}, [0], 99),
    "interlaced.mp4": ("libx264", {"g": "20", "sc_threshold": "0", "x264-params": "tff=1"}, TWENTIES, 19),
    "all.mp4": ("libx264", {"g": "1"}, list(range(100)), 1),
    "closed.hevc.mp4": ("libx265", {"x265-params": "log-level=none:keyint=20:open-gop=0:scenecut=0"}, TWENTIES, 15),
    "open.hevc.mp4": ("libx265", {"x265-params": "log-level=none:keyint=20:scenecut=0"}, [0], 70),
    "group.webm": ("libvpx-vp9", {"g": "20"}, TWENTIES, 19),
    "vp8.webm": ("libvpx", {"g": "20", "deadline": "realtime"}, TWENTIES, 19),
    "group.mp4": ("mpeg4", {"g": "20", "bf": "2"}, [], 50),
}


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the frames that the decoder gives, as it gives them."""
    numbers = []

    def noted(*arguments: Any) -> Iterator[Any]:
        for found in _frames(*arguments):
            numbers.append(found[0])
            yield found

    monkeypatch.setattr(video, "_frames", noted)
    return numbers


@pytest.mark.parametrize("name", GROUPS)
def test_what_is_left_out_on_the_way_changes_no_frame(tmp_path: Path, given: list[int], name: str) -> None:
    """Every choice of frames is, bit for bit, what decoding all of them gives; noise makes every picture matter."""
    codec, options, entries, most = GROUPS[name]
    rng = np.random.default_rng(0)
    pictures = np.stack([videos.numbered_frame(number, 96, 64) for number in range(100)])
    pictures[:, 32:] = rng.integers(0, 256, (100, 32, 96, 3))
    info = probe(write_video(tmp_path / name, codec, 100, (96, 64), pictures=pictures, options=options))
    assert info.entries.tolist() == entries
    every = decode_frames(info, range(100))
    assert numbers(every) == list(range(100))
    choices = [
        [0],
        [99],
        [50],
        [3, 4, 97],
        [19, 20, 21],
        [38, 39, 61],
        range(0, 100, 7),
        range(70, 90),
        range(0, 100, 31),
    ]
    choices += [np.sort(rng.integers(0, 100, size=count)) for count in (1, 2, 5, 16)]
    for choice in choices:
        np.testing.assert_array_equal(decode_frames(info, choice), every[list(choice)])
        threaded = [picture for _, picture in stream_frames(info, choice, threads=3)]
        np.testing.assert_array_equal(threaded, every[list(choice)])
    given.clear()
    decode_frames(info, [98])
    assert len(given) <= most


@pytest.mark.parametrize("name", ["uneven.mp4", "uneven.mkv", "uneven.webm"])
@pytest.mark.parametrize("group", [1, 2, 3, 10])
def test_seeks_find_their_frames_at_uneven_times(tmp_path: Path, given: list[int], name: str, group: int) -> None:
    options = {"g": str(group)} | ({} if name.endswith("webm") else {"bf": "2", "b_strategy": "0", "sc_threshold": "0"})
    pts = [500 + 40 * i + 37 * (i % 2) + (1500 if i > 40 else 0) for i in range(60)]
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    info = probe(write_video(tmp_path / name, codec, 60, pts=pts, options=options))
    assert len(info.entries) == 60 // group
    for index in range(60):
        given.clear()
        assert numbers(decode_frames(info, [index])) == [index]
        assert len(given) <= 2 * group + video._SEEK_PAST
    assert numbers(decode_frames(info, range(0, 60, 7))) == list(range(0, 60, 7))


def test_a_seek_that_ends_elsewhere_is_noticed(tmp_path: Path) -> None:
    """As with an index of a file that was written anew, or a container whose own index is wrong."""
    info = probe(write_video(tmp_path / "clip.mp4", frames=100, options=B_FRAMES))
    wrong = replace(info, entries=np.array([0, 30, 77]))
    assert numbers(decode_frames(wrong, [2, 33, 80, 99])) == [2, 33, 80, 99]


def test_where_seeking_fails_all_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unseekable:
        def __init__(self, container: InputContainer) -> None:
            self.demux = container.demux

        def seek(self, *arguments: object, **options: object) -> None:
            raise av.error.PermissionError(1, "Operation not permitted")

    @contextmanager
    def opened(*arguments: Any) -> Iterator[tuple[Unseekable, VideoStream]]:
        with really_opened(*arguments) as (container, stream):
            yield Unseekable(container), stream

    info = probe(write_video(tmp_path / "clip.mp4", frames=100, options=B_FRAMES))
    really_opened = video.opened
    monkeypatch.setattr(video, "opened", opened)
    assert numbers(decode_frames(info, [2, 60, 99])) == [2, 60, 99]


@pytest.mark.parametrize("name", GOOD)
def test_several_threads_give_the_same_frames(tmp_path: Path, name: str) -> None:
    info = probe(write(tmp_path, name))
    for wanted in (range(len(info.pts)), range(0, len(info.pts), 3)):
        frames = zip(stream_frames(info, wanted), stream_frames(info, wanted, threads=4), strict=True)
        for (index, alone), (again, together) in frames:
            assert index == again
            np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize("name", ["uneven.mp4", "uneven.mkv", "uneven.webm"])
def test_timestamps_are_those_that_were_written(tmp_path: Path, name: str) -> None:
    info = probe(write(tmp_path, name))
    assert [round(float(1000 * int(t) * info.time_base)) for t in info.pts] == UNEVEN
    assert info.end > info.pts[-1]
    # The frame shown at the middle of each of 10 segments, found without any search.
    start, end = int(info.pts[0]), info.end
    middles = [start + Fraction(2 * k + 1, 20) * (end - start) for k in range(10)]
    expected = [max(i for i, t in enumerate(info.pts) if t <= middle) for middle in middles]
    assert numbers(decode_frames(info, sample_frames(info, 10))) == expected


@pytest.mark.parametrize(
    ("degrees", "matrix", "corner"),
    [
        # The matrix moves the red patch from the coded picture's bottom-left to this corner (row, column).
        (0, (1, 0, 0, 1), (-1, 0)),
        (90, (0, -1, 1, 0), (-1, -1)),
        (180, (-1, 0, 0, -1), (0, -1)),
        (270, (0, 1, -1, 0), (0, 0)),
    ],
)
def test_phone_videos_stand_upright(
    tmp_path: Path, degrees: int, matrix: tuple[int, int, int, int], corner: tuple[int, int]
) -> None:
    path = videos.set_matrix(write_video(tmp_path / "phone.mp4", frames=5, size=(96, 64)), *matrix)
    info = probe(path)
    assert info.rotation == degrees
    assert (info.width, info.height) == ((64, 96) if degrees % 180 else (96, 64))
    for size in (None, (50, 30)):
        pictures = decode_frames(info, [0, 4], size)
        assert pictures.shape == (2, *(size or (info.height, info.width)), 3)
        for picture in pictures.astype(int):
            red = {(r, c): np.ptp(picture[3 * r or 2, 3 * c or 2]) for r in (0, -1) for c in (0, -1)}
            assert max(red, key=lambda place: red[place]) == corner
            assert red[corner] > 120
    upright = np.rot90(decode_frames(info, [3])[0], -degrees // 90)
    assert shown_number(upright) == 3


def _tracks(path: Path, *shown: tuple[str, int, int], cover: str = "libx264") -> Path:
    """Video streams (disposition, number of the first frame, frames) in one file; those of one frame as `cover`."""
    with av.open(str(path), "w") as container:
        streams = []
        for disposition, _, count in shown:
            codec = cover if count == 1 else "libx264"
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height = 64, 48
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = Disposition[disposition] if disposition else Disposition(0)
            streams.append(stream)
        for stream, (_, first, count) in zip(streams, shown, strict=True):
            for number in range(first, first + count):
                picture = videos.numbered_frame(number, 64, 48)
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
    """The default one, and the first of several, as mpv and VLC do; FFmpeg's MP4 always calls one the default."""
    info = probe(_tracks(tmp_path / f"several.{suffix}", *shown))
    count = next(count for _, first, count in shown if first == expected)
    assert numbers(decode_frames(info, range(count))) == list(range(expected, expected + count))
    assert len(info.pts) == count
    assert numbers(decode_frames(info, [count - 1])) == [expected + count - 1]
    assert not info.alone
    number = 1 + [first for _, first, _ in shown].index(expected)
    assert info.remarks == (f"has {len(shown)} video streams; only number {number}, which players show, is read",)


@pytest.mark.parametrize(("codec", "cover"), [("mjpeg", "attached_pic"), ("mjpeg", "default"), ("libx264", "default")])
def test_cover_art_is_never_the_video(tmp_path: Path, codec: str, cover: str) -> None:
    """Nor where it lies first and is not marked as a cover; what is marked needs no remark."""
    info = probe(_tracks(tmp_path / "cover.mp4", (cover, 200, 1), ("default", 0, 20), cover=codec))
    assert numbers(decode_frames(info, range(20))) == list(range(20))
    assert not info.alone
    assert len(info.remarks) == (cover != "attached_pic")


def test_sound_that_begins_late_is_no_error(tmp_path: Path) -> None:
    """PyAV does not know streams that FFmpeg finds only after it has opened the file."""
    path = write_video(tmp_path / "late.flv", frames=200)
    sound = bytes([8, 0, 0, 4]) + (7960).to_bytes(3, "big") + bytes(4) + b"\x2f\0\0\0"
    with open(path, "ab") as file:
        file.write(sound + len(sound).to_bytes(4, "big"))
    info = probe(path)
    assert numbers(decode_frames(info, range(200))) == list(range(200))


def test_one_stream_is_alone(tmp_path: Path) -> None:
    assert probe(write_video(tmp_path / "sound.mp4", frames=5, sound=True)).alone


@pytest.mark.parametrize("size", [(2, 4096), (4096, 2), (16, 8192), (6, 6), (8192, 100), (2, 64)])
def test_pictures_of_extreme_shape_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write_video(tmp_path / "thin.mkv", "mjpeg", 1, size, pictures=np.zeros((1, size[1], size[0], 3), np.uint8))
    with pytest.raises(DataError, match=f"has pictures of {size[0]} x {size[1]} pixels; expected are") as caught:
        probe(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(8, 8), (8, 512), (512, 8), (16, 1000), (1400, 40)])
def test_pictures_of_unusual_shape_are_read(tmp_path: Path, size: tuple[int, int]) -> None:
    pictures = np.full((2, size[1], size[0], 3), 90, np.uint8)
    path = write_video(tmp_path / "thin.mkv", "mjpeg", 2, size, pictures=pictures)
    info = probe(path)
    assert (info.width, info.height) == size
    assert decode_frames(info, [0, 1]).mean() == pytest.approx(90, abs=3)


def test_a_colon_in_a_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "clip.webm", "libvpx-vp9", frames=3).rename(tmp_path / "12:30.webm")
    monkeypatch.chdir(tmp_path)
    assert len(probe("12:30.webm").pts) == 3


def test_mirrors_are_refused(tmp_path: Path) -> None:
    path = videos.set_matrix(write_video(tmp_path / "selfie.mp4", frames=3), -1, 0, 0, 1)
    with pytest.raises(DataError, match="mirrored"):
        probe(path)


def test_a_trimmed_video_ends_where_its_edit_list_says(tmp_path: Path) -> None:
    path = write_video(tmp_path / "trimmed.mp4", frames=40, options={"g": "5", "bf": "2"})
    info = probe(videos.trim(path, seconds=0.8))
    assert 20 <= len(info.pts) <= 21
    assert numbers(decode_frames(info, range(20))) == list(range(20))


def test_hidden_frames_of_vp8_are_no_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.webm", "libvpx", frames=20, options={"deadline": "realtime"})
    info = probe(videos.hide(path, 12))
    assert numbers(decode_frames(info, range(19))) == [n for n in range(20) if n != 12]


def test_a_recording_that_begins_between_keyframes_starts_at_the_first(tmp_path: Path) -> None:
    path = write_video(tmp_path / "camera.ts", frames=30, options={"g": "10", "bf": "0", "sc_threshold": "0"})
    with av.open(str(path)) as source, av.open(str(tmp_path / "late.ts"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if number >= 4 and packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    info = probe(tmp_path / "late.ts")
    assert numbers(decode_frames(info, range(len(info.pts)))) == list(range(10, 30))


def test_pixels_match_an_independent_conversion(tmp_path: Path) -> None:
    """Against BT.601 and PIL's antialiased resize in floating point.

    Measured 1.21 of 255 on average, 7 at most; without full chroma 4.1 and 29, not antialiased 11 and 78.
    """
    pil = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    low = rng.integers(60, 200, (6, 8, 3), dtype=np.uint8)
    picture = np.asarray(pil.fromarray(low).resize((128, 96), pil.Resampling.BICUBIC))
    path = write_video(tmp_path / "smooth.mp4", size=(128, 96), frames=1, pictures=picture[None])
    with av.open(str(path)) as container:
        planes = next(container.decode(video=0)).to_ndarray().astype(float)
    y = (planes[:96] - 16) * 255 / 219
    u, v = (
        np.asarray(pil.fromarray(plane.reshape(48, 64).astype(np.float32)).resize((128, 96), 2), float)
        for plane in ((planes[96:120] - 128) * 255 / 224, (planes[120:] - 128) * 255 / 224)
    )
    rgb = np.stack([y + 1.402 * v, y - 0.344136 * u - 0.714136 * v, y + 1.772 * u], -1).clip(0, 255)
    expected = np.asarray(pil.fromarray(rgb.round().astype(np.uint8)).resize((40, 32), 2), float)
    got = decode_frames(probe(path), [0], (32, 40))[0]
    difference = np.abs(got - expected)
    assert difference.mean() < 1.5
    assert difference.max() <= 9


def make_bad(folder: Path, kind: str) -> Path:
    def written(data: bytes) -> Path:
        mp4.write_bytes(data)
        return mp4

    mp4, webm, avi = folder / "clip.mp4", folder / "clip.webm", folder / "clip.avi"
    fast = {"container_options": {"movflags": "faststart"}}
    fragments = {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "options": {"g": "8"}}
    make: dict[str, Callable[[], Path]] = {
        "missing": lambda: mp4,
        "empty": lambda: written(b""),
        "folder": lambda: folder,
        "pipe": lambda: os.mkfifo(mp4) or mp4,
        "noise": lambda: written(np.random.default_rng(0).bytes(9000)),
        "text": lambda: written(b"not a video\n" * 99),
        "sound": lambda: videos.write_sound(mp4),
        "picture": lambda: written(_png()),
        "device": lambda: mp4.symlink_to("/dev/zero") or mp4,
        "socket": lambda: _socket(mp4),
        # Each names a file that is there, so that whatever opens the list would find pictures.
        "playlist": lambda: _list(mp4, "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"),
        "playlist without end": lambda: _list(mp4, "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n"),
        "playlist of playlists": lambda: _list(mp4, "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{}\n"),
        "concat": lambda: _list(mp4, "ffconcat version 1.0\nfile {}\n"),
        "dash": lambda: _list(
            mp4,
            '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
            'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet><Representation id="1">'
            "<BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>",
        ),
        "session": lambda: _list(mp4, "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=-\nt=0 0\nm=video 5000 RTP/AVP 96\n"),
        "subtitles": lambda: _list(folder / "part.idx", "# VobSub index file, v7 (do not modify this line!)\n"),
        "cut mp4": lambda: videos.cut(write_video(mp4), 0.6),
        "cut fast mp4": lambda: videos.cut(write_video(mp4, **fast), 0.7),
        "cut mp4 by a byte": lambda: videos.cut(write_video(mp4, **fast), 0.9999),
        "cut fragments": lambda: videos.cut(write_video(mp4, **fragments), 0.6),
        "cut webm": lambda: videos.cut(write_video(webm, "libvpx-vp9"), 0.6),
        "cut avi": lambda: videos.cut(write_video(avi, "mpeg4"), 0.8),
    }
    return make[kind]()


def _list(path: Path, text: str) -> Path:
    """A list of other files that names a sound video of its folder, beside a pipe that would block."""
    write_video(path.with_name("part.ts"), frames=3)
    os.mkfifo(path.with_name("part.sub"))
    path.write_text(text.format("part.ts"))
    return path


def _socket(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
    return path


def _png() -> bytes:
    codec = av.CodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 16, 16, "rgb24", Fraction(1, 25)
    return b"".join(map(bytes, codec.encode(av.VideoFrame(16, 16, "rgb24"))))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("missing", "no such file"),
        ("empty", "empty"),
        ("folder", "not a file"),
        ("pipe", "not a file"),
        ("device", "not a file"),
        ("socket", "not a file"),
        ("playlist", "is a list of other files"),
        ("playlist without end", "is a list of other files"),
        ("playlist of playlists", "is a list of other files"),
        ("concat", "is a list of other files"),
        ("dash", "is a list of other files"),
        ("session", "is a list of other files"),
        ("subtitles", "is a list of other files"),
        ("noise", "cannot be opened as a video"),
        ("text", "cannot be opened as a video"),
        ("sound", "no video stream, only audio"),
        ("picture", "still picture"),
        ("cut mp4", "cut off"),
        ("cut fast mp4", r"the header says 40 frames, only \d+ are there: the file is truncated"),
        ("cut mp4 by a byte", "the header says 40 frames, only 39 are there: the file is truncated"),
        ("cut fragments", "truncated"),
        ("cut webm", r"the header says 1.60 s, the frames end at [01]\.\d\d s: the file is truncated"),
        ("cut avi", r"the header says 40 frames, only \d+ are there: the file is truncated"),
    ],
)
def test_bad_files_are_told_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str, expected: str
) -> None:
    path = make_bad(tmp_path, kind)
    capfd.readouterr()
    with pytest.raises(DataError, match=expected) as caught:
        probe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "codec"),
    [("clip.mp4", "libx264"), ("clip.webm", "libvpx-vp9"), ("clip.avi", "mpeg4"), ("clip.mkv", "libx265")],
)
def test_damage_in_the_middle_is_told_where_it_matters(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, codec: str
) -> None:
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = videos.corrupt(write_video(tmp_path / name, codec, options=options), range(20, 24))
    capfd.readouterr()
    info = probe(path)
    assert len(info.pts) == FRAMES
    assert numbers(decode_frames(info, range(15))) == list(range(15))
    with pytest.raises(DataError, match=r"only the first \d+ of its 40 frames decode: .* at \d\.\d\d s") as caught:
        decode_frames(info, range(FRAMES))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def _until_damage(info: VideoInfo, threads: int) -> tuple[list[int], str]:
    given = []
    try:
        for index, _ in stream_frames(info, range(FRAMES), threads=threads):
            given.append(index)
    except DataError as error:
        return given, str(error)
    return given, ""


@pytest.mark.parametrize("place", [6, 18, 33, 36, 38, 39])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("clip.mp4", "libx264", {}),
        ("bframes.mp4", "libx264", B_FRAMES),
        ("slices.mp4", "libx264", {"tune": "zerolatency", "slices": "4"}),
        ("clip.webm", "libvpx-vp9", {}),
        ("clip.avi", "mpeg4", {}),
        ("clip.mkv", "mjpeg", {}),
    ],
)
def test_several_threads_tell_damage_as_one_does(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], place: int
) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (FRAMES, 48, 64, 3), dtype=np.uint8)
    path = write_video(tmp_path / name, codec, options=options, pictures=pictures)
    info = probe(videos.corrupt(path, range(place, place + 1)))
    alone = _until_damage(info, threads=1)
    assert alone[1]
    assert _until_damage(info, threads=4) == alone


def test_damage_is_told_alike_wherever_several_threads_meet_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many sound frames they give before it is chance."""
    info = probe(videos.corrupt(write_video(tmp_path / "clip.mp4", "libx264", options=B_FRAMES), range(18, 19)))
    alone = _until_damage(info, threads=1)
    assert alone[1]
    decode = video._decode
    for given in range(len(alone[0]) + 1):

        def stopped(info: VideoInfo, wanted: np.ndarray, threads: int, given: int = given) -> Iterator[av.VideoFrame]:
            frames = decode(info, wanted, 1)
            if threads == 1:
                yield from frames
            yield from islice(frames, given)
            raise DataError(info.path, "met by chance")

        monkeypatch.setattr(video, "_decode", stopped)
        assert _until_damage(info, threads=4) == alone


def test_a_picture_that_the_decoder_had_to_invent_is_not_given(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (8, 48, 64, 3), dtype=np.uint8)
    path = write_video(tmp_path / "clip.avi", "mpeg4", 8, pictures=pictures, options={"g": "1"})
    data = bytearray(path.read_bytes())
    place = videos.packet_places(path)[5]
    data[place.start + 200 : place.stop] = bytes(place.stop - place.start - 200)
    path.write_bytes(data)
    info = probe(path)
    assert len(decode_frames(info, [4, 6])) == 2
    with pytest.raises(DataError, match="only the first 5 of its 8 frames decode"):
        decode_frames(info, [5])


def test_fewer_frames_than_the_index_has_are_told(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.webm", "libvpx-vp9", frames=30)
    info = probe(path)
    write_video(path, "libvpx-vp9", frames=20)
    with pytest.raises(DataError, match="only the first 20 of its 30 frames decode"):
        decode_frames(info, [29])


@pytest.mark.parametrize("indices", [[-1], [3], [2, 1]])
def test_streams_refuse_what_they_cannot_give(tmp_path: Path, indices: list[int]) -> None:
    info = probe(write_video(tmp_path / "clip.mp4", frames=3))
    with pytest.raises(ValueError, match="frame"):
        list(stream_frames(info, indices))
