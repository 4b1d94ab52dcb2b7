"""Folders of numbered pictures are found whole, read in their order, and made videos that show the same."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actdet.errors import DataError
from actdet.video.decoding import decode_frames
from actdet.video.encoding import read_comment
from actdet.video.images import is_numbered, picture_files, picture_size, read_pictures, write_pictures
from actdet.video.info import probe
from tests.actdet.video.videos import numbered_frame, shown_numbers


def write_pictures_of(folder: Path, count: int, size: tuple[int, int] = (64, 48), form: str = "{:05}.png") -> Path:
    """Pictures 1 to `count`, each of which shows its number."""
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        Image.fromarray(numbered_frame(number, *size)).save(folder / form.format(number))
    return folder


@pytest.mark.parametrize("form", ["{:05}.png", "{}.jpg", "img_{:03}.JPEG", "v-1.{}.bmp"])
def test_pictures_come_in_the_order_of_their_numbers(tmp_path: Path, form: str) -> None:
    folder = write_pictures_of(tmp_path / "v", 12, form=form)
    (folder / "Thumbs.db").touch()
    paths = picture_files(folder)
    assert [path.name for path in paths] == [form.format(number) for number in range(1, 13)]
    assert picture_size(paths[0]) == (64, 48)
    assert shown_numbers(read_pictures(paths)) == list(range(1, 13))


def test_pictures_of_another_name_are_passed_over(tmp_path: Path) -> None:
    folder = write_pictures_of(tmp_path / "v", 3)
    Image.new("RGB", (8, 8)).save(folder / "cover_1.png")
    assert len(picture_files(folder)) == 3


def test_what_is_called_as_a_picture() -> None:
    assert all(map(is_numbered, ("1.jpg", "00001.PNG", "frame_7.jpeg", "a.b.3.bmp")))
    assert not any(map(is_numbered, ("a.jpg", "1.txt", "1", "1.jpg.part", "1234567890.jp")))


def _remove(folder: Path, name: str) -> None:
    (folder / name).unlink()


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "none": (lambda folder: [path.unlink() for path in folder.iterdir()], "contains no numbered pictures"),
    "missing": (lambda folder: _remove(folder, "00003.png"), "contains pictures 1 to 5, but not number 3"),
    "twice": (lambda folder: Image.new("RGB", (64, 48)).save(folder / "3.png"), "has the same number as 00003.png"),
    "empty": (lambda folder: (folder / "00003.png").write_bytes(b""), "cannot be read as a picture"),
    "cut": (
        lambda folder: (folder / "00003.png").write_bytes((folder / "00003.png").read_bytes()[:60]),
        "cannot be read as a picture",
    ),
    "text": (lambda folder: (folder / "00003.png").write_text("text"), "cannot be read as a picture"),
    "size": (lambda folder: Image.new("RGB", (64, 50)).save(folder / "00003.png"), "has 64x50 pixels; expected 64x48"),
    "bomb": (
        lambda folder: Image.new("1", (20000, 20000)).save(folder / "00003.png"),
        "cannot be read as a picture (Image size (400000000 pixels) exceeds limit",
    ),
}


@pytest.mark.parametrize(("spoil", "expected"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_a_folder_that_is_not_whole_makes_no_video(
    tmp_path: Path, spoil: Callable[[Path], object], expected: str
) -> None:
    folder = write_pictures_of(tmp_path / "v", 5)
    spoil(folder)
    with pytest.raises(DataError) as caught:
        write_pictures(picture_files(folder), tmp_path / "v.mp4", Fraction(25))
    assert str(caught.value).startswith(str(folder))
    assert expected in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


@pytest.mark.parametrize("size", [(64, 48), (65, 49), (64, 49)])
def test_the_video_shows_the_pictures_one_after_the_other(tmp_path: Path, size: tuple[int, int]) -> None:
    folder = write_pictures_of(tmp_path / "v", 20, size)
    out = tmp_path / "v.mp4"
    write_pictures(picture_files(folder), out, Fraction(30), "a comment")

    video = probe(out)
    assert (video.width, video.height) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    np.testing.assert_allclose(np.diff(video.pts) * float(video.time_base), 1 / 30, atol=1e-4)
    assert video.seconds == pytest.approx(20 / 30, abs=1e-3)
    assert shown_numbers(decode_frames(video, range(20))) == list(range(1, 21))
    assert read_comment(out) == "a comment"


def test_hardly_anything_is_lost(tmp_path: Path) -> None:
    """Noise in gray, which needs no color: what is lost is the encoder's rounding."""
    folder = tmp_path / "v"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (6, 48, 64), np.uint8)
    for number, picture in enumerate(noise):
        Image.fromarray(picture).save(folder / f"{number}.png")
    write_pictures(picture_files(folder), tmp_path / "v.mp4", Fraction(25))

    video = probe(tmp_path / "v.mp4")
    decoded = decode_frames(video, range(6)).astype(float)
    error = np.abs(decoded - noise[..., None])
    assert error.mean() < 1
    assert error.max() <= 6
