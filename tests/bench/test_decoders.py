"""A reader of video is timed only where its frames are those that were asked for, and its pixels PyAV's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from actdet.errors import ActdetError
from actdet.video.decoding import ClipRequest
from actdet.video.info import probe
from bench.decoders import OURS, READERS, fault_of, open_decoder, pyav
from bench.ffmpeg import link_libraries
from bench.numbered import FRAMES, HEIGHT, WIDTH, Video, encode, number_of, write_number

SIZE = (112, 112)
Change = Callable[[np.ndarray], np.ndarray]


def make_clip(path: Path, video: Video) -> ClipRequest:
    """Eight of 48 frames: a bright square that crosses a colored ground."""
    pictures = [np.full((3 * HEIGHT // 2, WIDTH), 90, np.uint8) for _ in range(48)]
    for number, picture in enumerate(pictures):
        picture[100:200, 10 * number : 10 * number + 100] = 200
        picture[HEIGHT + HEIGHT // 4 :] = 160
        write_number(picture, number)
    encode(video, pictures, path)
    return ClipRequest(probe(path), np.arange(3, 48, 6))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipRequest:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", Video("H.264", 12))


@pytest.mark.parametrize("step", [1, 2, 4])
def test_every_number_is_read_as_it_was_written(step: int) -> None:
    picture = np.zeros((3 * HEIGHT // 2, WIDTH), np.uint8)
    for number in range(FRAMES):
        write_number(picture, number)
        assert number_of(np.repeat(picture[:HEIGHT:step, ::step, None], 3, axis=2)) == number


@pytest.mark.parametrize("name", [OURS, "PyAV", "PyAV, seeking"])
def test_right_readers_are_found_right(name: str, clip: ClipRequest) -> None:
    found = READERS[name](clip, SIZE)
    assert fault_of(found, clip.indices, pyav(clip, SIZE)) is None


@pytest.mark.parametrize("cores", [1, 2])
def test_our_reader_is_found_right_with_and_without_processes(cores: int, clip: ClipRequest) -> None:
    with open_decoder(OURS, clip.video, SIZE, cores) as decode:
        clips = decode([clip] * 3)
    assert len(clips) == 3
    assert [fault_of(found, clip.indices, pyav(clip, SIZE)) for found in clips] == [None] * 3


def late(pictures: np.ndarray) -> np.ndarray:
    return np.roll(pictures, 1, axis=0)


def swapped(pictures: np.ndarray) -> np.ndarray:
    return pictures[..., ::-1]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (late, "gives wrong frames: 8 of 8, the first 45 for 3"),
        (
            lambda pictures: np.concatenate([pictures[:7], pictures[:1]]),
            "gives wrong frames: 1 of 8, the first 3 for 45",
        ),
        (swapped, "differs from PyAV by "),
        (lambda pictures: np.minimum(pictures, 250) + 5, "differs from PyAV by "),
        (lambda pictures: pictures[:-1], "gives uint8 (7, 112, 112, 3), not uint8 (8, 112, 112, 3)"),
        (lambda pictures: pictures / np.float32(255), "gives float32 (8, 112, 112, 3), not uint8 "),
    ],
)
def test_a_wrong_reader_is_refused(change: Change, fault: str, clip: ClipRequest) -> None:
    reference = pyav(clip, SIZE)
    assert str(fault_of(change(reference), clip.indices, reference)).startswith(fault)


def test_one_frame_off_is_refused_whatever_its_pixels(clip: ClipRequest) -> None:
    """The reference of the neighbors is as near as can be; the numbers tell."""
    neighbors = ClipRequest(clip.video, clip.indices + 1)
    found = pyav(neighbors, SIZE)
    assert fault_of(found, clip.indices, found) == "gives wrong frames: 8 of 8, the first 4 for 3"


def test_seeking_by_the_frame_rate_goes_wrong_where_it_varies(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", Video("H.264", 12, steady=False))
    reference = pyav(clip, SIZE)
    assert fault_of(READERS[OURS](clip, SIZE), clip.indices, reference) is None
    fault = fault_of(READERS["PyAV, seeking"](clip, SIZE), clip.indices, reference)
    assert str(fault).startswith("gives wrong frames: ")


def test_dali_says_why_it_reads_no_h264_on_a_cpu(clip: ClipRequest) -> None:
    with pytest.raises(ActdetError, match=r"reader dali cannot be used: (dali-cpu decodes only|DALI is not installed)"):
        open_decoder("DALI", clip.video, SIZE, 1).__enter__()


def test_the_libraries_of_pyav_get_the_names_that_a_program_looks_for(tmp_path: Path) -> None:
    for _ in range(2):
        link_libraries(tmp_path)
    links = {link.name.split(".so.")[0]: link for link in tmp_path.iterdir()}
    if not links:
        pytest.skip("this PyAV uses the system's FFmpeg")
    assert links.keys() >= {"libavcodec", "libavformat", "libavutil", "libswscale", "libswresample", "libavfilter"}
    assert all(link.resolve().is_file() and link.name.split(".so.")[1].isdigit() for link in links.values())
