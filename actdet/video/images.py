"""Folders of numbered pictures, in which data sets keep the frames of a video: found, read, made a video file."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from actdet.errors import DataError
from actdet.video.encoding import choose_encoder, write_video

# 00001.jpg, img_00001.png, frame-7.jpeg: a number before the ending, and the same before it in all names.
_NUMBERED = re.compile(r"(.*?)([0-9]{1,9})\.(jpe?g|png|bmp)", re.IGNORECASE)

# So little is lost that 4:2:0 color loses more, and every decoder reads it: H.264 has a lossless mode (crf 0), but
# decoders in hardware do not have it.
_OPTIONS = {
    "libx264": {"preset": "veryfast", "crf": "1", "bf": "0", "g": "16"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "6", "crf": "1", "b:v": "0", "lag-in-frames": "0", "g": "16"},
}


def is_numbered(name: str) -> bool:
    """Whether a file is called as a picture of such a folder."""
    return _NUMBERED.fullmatch(name) is not None


def picture_files(folder: Path) -> list[Path]:
    """Find the pictures of a folder, in the order of their numbers.

    Raises:
        DataError: If there are none, or if one is missing in between.
    """
    found = [(match, path) for path in folder.iterdir() if (match := _NUMBERED.fullmatch(path.name)) is not None]
    if not found:
        raise DataError(folder, "contains no numbered pictures; expected 00001.jpg, 00002.jpg and so on")

    prefix, _ = Counter(match[1] for match, _ in found).most_common(1)[0]
    by_number: dict[int, Path] = {}
    for match, path in sorted(found, key=lambda item: item[1].name):
        if match[1] != prefix:
            continue
        first = by_number.setdefault(int(match[2]), path)
        if first != path:
            raise DataError(path, f"has the same number as {first.name}; remove one of them")

    numbers = sorted(by_number)
    missing = next((number for number in range(numbers[0], numbers[-1]) if number not in by_number), None)
    if missing is not None:
        problem = f"contains pictures {numbers[0]} to {numbers[-1]}, but not number {missing}"
        raise DataError(folder, f"{problem}; copy it again")
    return [by_number[number] for number in numbers]


def picture_size(path: Path) -> tuple[int, int]:
    """Read the width and the height of a picture, in pixels.

    Raises:
        DataError: If it is not a picture.
    """
    with _opened(path) as picture:
        return picture.size


def read_pictures(paths: Sequence[Path]) -> Iterator[np.ndarray]:
    """Yield pictures as (H, W, 3) uint8 RGB, one after the other.

    Raises:
        DataError: If one cannot be read, or differs in size from the first one.
    """
    size = picture_size(paths[0])
    for path in paths:
        with _opened(path) as picture:
            if picture.size != size:
                width, height = picture.size
                raise DataError(path, f"has {width}x{height} pixels; expected {size[0]}x{size[1]} as {paths[0].name}")
            yield np.asarray(picture.convert("RGB"))


def write_pictures(paths: Sequence[Path], out: Path, rate: Fraction, comment: str = "") -> None:
    """Make a video file of pictures, in which each is shown as long as the others.

    What is lost is less than what is lost when colors are stored at half the resolution, as videos do. A picture with
    an odd side gets one more column or row, equal to its last one, so boxes stay where they are.

    Args:
        paths: At least one.
        out: The file, an MP4.
        rate: Pictures per second.
        comment: Goes into the metadata of the file.

    Raises:
        DataError: As `read_pictures` and `write_video`. `out` is then as it was before.
    """
    encoder = choose_encoder()
    write_video(
        out,
        (_even(picture) for picture in read_pictures(paths)),
        np.arange(len(paths)),
        1 / rate,
        end=len(paths),
        encoder=encoder,
        options=_OPTIONS[encoder],
        comment=comment,
    )


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Context manager: the picture in a file, whose errors, also while it is decoded, become a DataError."""
    try:
        with warnings.catch_warnings():
            # A picture so large that Pillow warns about it is no frame of a video.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("JPEG", "PNG", "BMP")) as picture:
                yield picture
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(path, f"cannot be read as a picture ({error}); copy it again") from None


def _even(picture: np.ndarray) -> np.ndarray:
    """Repeat the last row or column of a picture with an odd side, which video encoders refuse."""
    height, width = picture.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return picture
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
