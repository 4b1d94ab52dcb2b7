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

from actdet.data.ahead import ahead
from actdet.data.encoding import write_video
from actdet.data.video import VideoInfo, stream_frames

COLOURS = ("#ff4136", "#ffb000", "#b14cff", "#00b8d4", "#7bd600", "#ff6fb5")  # one a class, then again
TRUTH = "#ffffff"
_LEAST_WIDTH, _MOST_WIDTH = (
    480,
    1280,
)  # of annotated pictures, so that a label can be read and a file stays small
_MOST_HEIGHT = 2560  # which only what is more than twice as tall as wide reaches
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
    width = min(width, max(16, _MOST_HEIGHT * video.width // video.height))
    height = min(max(16, round(video.height * width / video.width)), _MOST_HEIGHT)
    return round(height / 2) * 2, width // 2 * 2


def annotate_video(
    video: VideoInfo,
    marks_at: Iterable[Sequence[Mark]],
    out: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `video` with marks on every frame to `out` (.mp4): `marks_at` gives one list of marks a frame, in order.

    Frames are decoded, drawn on and encoded one by one; `progress(done, total)` is called after each.
    """
    total = len(video.pts)
    decoded = stream_frames(video, range(total), picture_size(video), threads=0)

    def drawn() -> Generator[np.ndarray, None, None]:
        with closing(ahead(decoded, _AHEAD)) as frames:
            for (index, pixels), marks in zip(frames, marks_at, strict=True):
                yield draw(pixels, marks)
                if progress:
                    progress(index + 1, total)

    with closing(drawn()) as pictures:
        write_video(out, pictures, video.pts - video.pts[0], video.time_base)


def data_url(picture: np.ndarray) -> str:
    """A JPEG of `picture` that can stand in a page."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
