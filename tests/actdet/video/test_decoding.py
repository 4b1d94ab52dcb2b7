"""Every frame that is asked for is the right one, however it is reached, and damage is reported in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.container import InputContainer
from av.error import PermissionError as FFmpegPermissionError
from av.video.stream import VideoStream

from actdet.errors import DataError
from actdet.video import decoding
from actdet.video.decoding import decode_frames, stream_frames
from actdet.video.info import VideoInfo, probe
from tests.actdet.video import videos
from tests.actdet.video.videos import (
    B_FRAMES,
    EXAMPLES,
    FRAMES,
    numbered_frame,
    shown_numbers,
    write_example,
    write_video,
)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_index_gives_the_frame_of_that_number(tmp_path: Path, name: str) -> None:
    info = probe(write_example(tmp_path, name))
    count = EXAMPLES[name][1].get("frames", FRAMES)
    assert len(info.pts) == count
    assert shown_numbers(decode_frames(info, range(count))) == list(range(count))

    wanted = [count - 1, 0, count // 2, count // 2, 0]
    assert shown_numbers(decode_frames(info, wanted, (60, 80))) == wanted
    assert [index for index, _ in stream_frames(info, iter([0, 0, count // 2]), (8, 8))] == [0, 0, count // 2]


TWENTIES = [0, 20, 40, 60, 80]

# Of each file the codec, its options, the seek points, and how many frames the decoder gives on the way to frame 98.
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
    decoded_frames = decoding._decoded_frames

    def noted(*arguments: Any) -> Iterator[Any]:
        for found in decoded_frames(*arguments):
            numbers.append(found[0])
            yield found

    monkeypatch.setattr(decoding, "_decoded_frames", noted)
    return numbers


@pytest.mark.parametrize("name", GROUPS)
def test_what_is_left_out_on_the_way_changes_no_frame(tmp_path: Path, given: list[int], name: str) -> None:
    """Every choice of frames is, bit for bit, what decoding all of them gives. Noise makes every picture matter."""
    codec, options, seek_points, most = GROUPS[name]
    rng = np.random.default_rng(0)
    pictures = np.stack([numbered_frame(number, 96, 64) for number in range(100)])
    pictures[:, 32:] = rng.integers(0, 256, (100, 32, 96, 3))
    info = probe(write_video(tmp_path / name, codec, 100, (96, 64), pictures=pictures, options=options))
    assert info.seek_points.tolist() == seek_points

    every = decode_frames(info, range(100))
    assert shown_numbers(every) == list(range(100))
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
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    options = {"g": str(group)}
    if codec == "libx264":
        options |= {"bf": "2", "b_strategy": "0", "sc_threshold": "0"}
    pts = [500 + 40 * i + 37 * (i % 2) + (1500 if i > 40 else 0) for i in range(60)]
    info = probe(write_video(tmp_path / name, codec, 60, pts=pts, options=options))
    assert len(info.seek_points) == 60 // group

    for index in range(60):
        given.clear()
        assert shown_numbers(decode_frames(info, [index])) == [index]
        assert len(given) <= 2 * group + decoding._SEEK_PAST
    assert shown_numbers(decode_frames(info, range(0, 60, 7))) == list(range(0, 60, 7))


def test_a_seek_that_ends_elsewhere_is_noticed(tmp_path: Path) -> None:
    """As with an index of a file that was written anew, or a container whose own index is wrong."""
    info = probe(write_video(tmp_path / "clip.mp4", frames=100, options=B_FRAMES))
    wrong = replace(info, seek_points=np.array([0, 30, 77]))
    assert shown_numbers(decode_frames(wrong, [2, 33, 80, 99])) == [2, 33, 80, 99]


def test_if_seeking_fails_everything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unseekable:
        def __init__(self, container: InputContainer) -> None:
            self.demux = container.demux

        def seek(self, *arguments: object, **options: object) -> None:
            raise FFmpegPermissionError(1, "Operation not permitted")

    open_video = decoding.open_video

    @contextmanager
    def open_unseekable(*arguments: Any) -> Iterator[tuple[Unseekable, VideoStream]]:
        with open_video(*arguments) as (container, stream):
            yield Unseekable(container), stream

    info = probe(write_video(tmp_path / "clip.mp4", frames=100, options=B_FRAMES))
    monkeypatch.setattr(decoding, "open_video", open_unseekable)
    assert shown_numbers(decode_frames(info, [2, 60, 99])) == [2, 60, 99]


@pytest.mark.parametrize("name", EXAMPLES)
def test_several_threads_give_the_same_frames(tmp_path: Path, name: str) -> None:
    info = probe(write_example(tmp_path, name))
    for wanted in (range(len(info.pts)), range(0, len(info.pts), 3)):
        frames = zip(stream_frames(info, wanted), stream_frames(info, wanted, threads=4), strict=True)
        for (index, alone), (again, together) in frames:
            assert index == again
            np.testing.assert_array_equal(alone, together)


def test_pixels_match_an_independent_conversion(tmp_path: Path) -> None:
    """Against BT.601 and PIL's antialiased resize in floating point.

    Measured: 1.21 of 255 on average, 7 at most; without full chroma 4.1 and 29, not antialiased 11 and 78.
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


@pytest.mark.parametrize(
    ("name", "codec"),
    [("clip.mp4", "libx264"), ("clip.webm", "libvpx-vp9"), ("clip.avi", "mpeg4"), ("clip.mkv", "libx265")],
)
def test_damage_in_the_middle_is_reported_when_it_matters(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, codec: str
) -> None:
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = videos.corrupt(write_video(tmp_path / name, codec, options=options), range(20, 24))
    capfd.readouterr()
    info = probe(path)
    assert len(info.pts) == FRAMES
    assert shown_numbers(decode_frames(info, range(15))) == list(range(15))
    with pytest.raises(DataError, match=r"only the first \d+ of its 40 frames decode: .* at \d\.\d\d s") as caught:
        decode_frames(info, range(FRAMES))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def _until_damage(info: VideoInfo, threads: int) -> tuple[list[int], str]:
    """The frames that come before damage, and what is said of it."""
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
def test_several_threads_report_damage_as_one_does(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], place: int
) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (FRAMES, 48, 64, 3), dtype=np.uint8)
    path = write_video(tmp_path / name, codec, options=options, pictures=pictures)
    info = probe(videos.corrupt(path, range(place, place + 1)))
    alone = _until_damage(info, threads=1)
    assert alone[1]
    assert _until_damage(info, threads=4) == alone


def test_damage_is_reported_alike_wherever_several_threads_meet_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many intact frames they give before it is chance."""
    info = probe(videos.corrupt(write_video(tmp_path / "clip.mp4", "libx264", options=B_FRAMES), range(18, 19)))
    alone = _until_damage(info, threads=1)
    assert alone[1]

    wanted_frames = decoding.wanted_frames
    for given in range(len(alone[0]) + 1):

        def stopped(info: VideoInfo, wanted: np.ndarray, threads: int, given: int = given) -> Iterator[av.VideoFrame]:
            frames = wanted_frames(info, wanted, 1)
            if threads == 1:
                yield from frames
            yield from islice(frames, given)
            raise DataError(info.path, "met by chance")

        monkeypatch.setattr(decoding, "wanted_frames", stopped)
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


def test_fewer_frames_than_the_index_has_are_reported(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.webm", "libvpx-vp9", frames=30)
    info = probe(path)
    write_video(path, "libvpx-vp9", frames=20)
    with pytest.raises(DataError, match="only the first 20 of its 30 frames decode"):
        decode_frames(info, [29])


@pytest.mark.parametrize("indices", [[-1], [3], [2, 1]])
def test_streams_refuse_what_they_cannot_give(tmp_path: Path, indices: list[int]) -> None:
    info = probe(write_video(tmp_path / "clip.mp4", frames=3))
    with pytest.raises(ValueError, match="expected ascending indices of frames"):
        list(stream_frames(info, indices))
