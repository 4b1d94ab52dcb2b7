"""What is known of a video before it is decoded is true: when its frames show, its size, its rotation."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from actdet.errors import DataError
from actdet.video.decoding import decode_frames
from actdet.video.info import probe
from actdet.video.sampling import sample_frames
from tests.actdet.video import videos
from tests.actdet.video.videos import UNEVEN, shown_number, shown_numbers, write_example, write_video


@pytest.mark.parametrize("name", ["uneven.mp4", "uneven.mkv", "uneven.webm"])
def test_timestamps_are_those_that_were_written(tmp_path: Path, name: str) -> None:
    info = probe(write_example(tmp_path, name))
    assert [round(float(1000 * int(t) * info.time_base)) for t in info.pts] == UNEVEN
    assert info.end > info.pts[-1]

    # The frame shown at the middle of each of 10 segments, found without any search.
    start = int(info.pts[0])
    middles = [start + Fraction(2 * k + 1, 20) * (info.end - start) for k in range(10)]
    expected = [max(i for i, t in enumerate(info.pts) if t <= middle) for middle in middles]
    assert shown_numbers(decode_frames(info, sample_frames(info, 10))) == expected


@pytest.mark.parametrize(
    ("degrees", "matrix", "corner"),
    [
        # The matrix moves the red patch from the coded picture's bottom left to this corner (row, column).
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


@pytest.mark.parametrize("size", [(2, 4096), (4096, 2), (16, 8192), (6, 6), (8192, 100), (2, 64)])
def test_pictures_of_extreme_shape_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    pictures = np.zeros((1, size[1], size[0], 3), np.uint8)
    path = write_video(tmp_path / "thin.mkv", "mjpeg", 1, size, pictures=pictures)
    with pytest.raises(DataError, match=f"has pictures of {size[0]} x {size[1]} pixels; expected sides") as caught:
        probe(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(8, 8), (8, 512), (512, 8), (16, 1000), (1400, 40)])
def test_pictures_of_unusual_shape_are_read(tmp_path: Path, size: tuple[int, int]) -> None:
    pictures = np.full((2, size[1], size[0], 3), 90, np.uint8)
    info = probe(write_video(tmp_path / "thin.mkv", "mjpeg", 2, size, pictures=pictures))
    assert (info.width, info.height) == size
    assert decode_frames(info, [0, 1]).mean() == pytest.approx(90, abs=3)
