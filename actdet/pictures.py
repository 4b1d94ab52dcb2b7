"""What a person looks at: boxes drawn on frames, annotated videos, pages with pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from actdet.data._container import opened
from actdet.data.ahead import ahead
from actdet.data.encoding import write_video
from actdet.data.video import VideoInfo, stream_frames, stream_past_damage
from actdet.errors import DataError

COLOURS = ("#ff4136", "#ffb000", "#b14cff", "#00b8d4", "#7bd600", "#ff6fb5")  # one a class, then again
TRUTH = "#ffffff"
_LEAST_WIDTH, _MOST_WIDTH = (
    480,
    1280,
)  # of annotated pictures, so that a label can be read and a file stays small
_LONGEST_STILL = 60  # seconds: for how long at most a frame shows in an annotated video
_ANNOTATED = "annotated by actdet"  # in the metadata of such a video
_AHEAD = 8  # frames decoded while others are drawn on


class Mark(NamedTuple):
    """A box (x1, y1, x2, y2 in shares of the picture, or None for the label alone) with its label and colour."""

    box: tuple[float, float, float, float] | None
    label: str
    colour: str


def class_colour(label: int) -> str:
    """The colour in which class number `label` is drawn."""
    return COLOURS[label % len(COLOURS)]


def draw(picture: np.ndarray, marks: Iterable[Mark]) -> np.ndarray:
    """A copy of `picture` (H, W, 3) uint8 with marks on it."""
    image = Image.fromarray(picture)
    canvas = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(12, image.height // 22))
    line = max(2, image.height // 160)
    corner = 2.0
    for box, label, colour in marks:
        x, y = 2.0, corner
        if box is not None:
            x1, y1, x2, y2 = (side * (image.width, image.height)[i % 2] for i, side in enumerate(box))
            canvas.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=line)
            x, y = x1, y1
        if not label:
            continue
        left, top, right, bottom = canvas.textbbox((0, 0), label, font=font)
        width, height = right - left + 6, bottom - top + 6
        x, y = max(0.0, min(x, image.width - width)), max(0.0, y - height if box is not None else y)
        canvas.rectangle((x, y, x + width, y + height), fill=colour)
        canvas.text((x + 3 - left, y + 3 - top), label, fill="black", font=font)
        corner = y + height + 2 if box is None else corner
    return np.asarray(image)


def picture_size(video: VideoInfo) -> tuple[int, int]:
    """(height, width), even, at which a video is drawn on."""
    width = min(max(video.width, _LEAST_WIDTH), _MOST_WIDTH)
    return round(video.height * width / video.width / 2) * 2, width // 2 * 2


def annotate_video(
    video: VideoInfo,
    marks_at: Iterable[Sequence[Mark]],
    out: Path,
    *,
    past_damage: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[int]:
    """Write `video` with marks on every frame to `out` (.mp4): `marks_at` gives one list of marks a frame, in order.

    Frames are decoded, drawn on and encoded one by one; `progress(done, total)` is called after each. With
    `past_damage` the last sound picture, marked as damaged, stands for frames that are lost, which otherwise are a
    DataError. Where a clock jumped, a frame shows for a minute at most: MP4 has no room for years.

    Returns:
        The frames that are lost.
    """
    lost: list[int] = []
    total = len(video.pts)
    size = picture_size(video)
    decoded = (stream_past_damage if past_damage else stream_frames)(video, range(total), size, threads=0)

    def drawn() -> Generator[np.ndarray, None, None]:
        picture = np.zeros((*size, 3), np.uint8)
        with closing(ahead(decoded, _AHEAD)) as frames:
            for (index, pixels), marks in zip(frames, marks_at, strict=True):
                if pixels is None:
                    lost.append(index)
                    yield draw(picture, [Mark(None, "damaged", TRUTH)])
                else:
                    picture = pixels
                    yield draw(picture, marks)
                if progress:
                    progress(index + 1, total)

    longest = max(int(_LONGEST_STILL / video.time_base), 1)
    pts = np.cumsum(np.minimum(np.diff(video.pts, prepend=video.pts[:1]), longest))
    with closing(drawn()) as pictures:
        write_video(out, pictures, pts, video.time_base, comment=_ANNOTATED)
    return lost


def is_annotated(path: Path) -> bool:
    """Whether `annotate_video` has written this file."""
    try:
        with opened(str(path)) as (container, _):
            return container.metadata.get("comment") == _ANNOTATED
    except DataError:
        return False


def data_url(picture: np.ndarray) -> str:
    """A JPEG of `picture` that can stand in a page."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
