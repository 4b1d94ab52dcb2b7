"""What a person looks at: boxes drawn on frames, annotated videos, pages with pictures."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from actdet.video.decoding import VideoInfo, stream_frames, stream_past_damage
from actdet.video.encoding import QUICK, choose_encoder, read_comment, write_video
from actdet.video.prefetch import ahead

COLOURS = ("#ff4136", "#ffb000", "#b14cff", "#00b8d4", "#7bd600", "#ff6fb5")  # one a class, then again
TRUTH = "#ffffff"
_NO_ACTION = "#bbbbbb"
_OUTLINE = "black"  # on both sides of a box's line, so that it stands out on walls as bright as itself
_TIMELINE = "actdet: timeline"  # what a timeline says of itself
_ANNOTATED = "actdet: annotated"  # what an annotated video says of itself
_LEAST_WIDTH, _MOST_WIDTH = (
    480,
    1280,
)  # of annotated pictures, so that a label can be read and a file stays small
_MOST_HEIGHT = 2560  # which only what is more than twice as tall as wide reaches
# Seconds between the times that a timeline names, from a tenth to a day.
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
_MOST_LETTERS = 40  # of a class name beside a timeline
_LONGEST_STILL = 60  # seconds: for how long at most a frame shows in an annotated video
_AHEAD = 8  # frames decoded while others are drawn on


class Mark(NamedTuple):
    """A box (x1, y1, x2, y2 in shares of the picture, or None for the label alone) with its label and colour."""

    box: tuple[float, float, float, float] | None
    label: str
    colour: str


NOT_LOOKED_AT = Mark(None, "not looked at", "#ffffff")  # where no answer is known, which is not "no action"


def no_action_mark(score: float) -> Mark:
    """The mark of a picture in which no action was found; `score` is that of the likeliest one."""
    return Mark(None, f"no action (surest: {score:.2f})", _NO_ACTION)


def class_colour(label: int) -> str:
    """The colour in which class number `label` is drawn."""
    return COLOURS[label % len(COLOURS)]


def clock(seconds: float) -> str:
    """A time as players show it, with hundredths: 0:07.25, 1:02:07.25."""
    hundredths = round(100 * seconds)
    minutes, hundredths = divmod(hundredths, 6000)
    hours, minutes = divmod(minutes, 60)
    rest = f"{hundredths // 100:02}.{hundredths % 100:02}"
    return f"{hours}:{minutes:02}:{rest}" if hours else f"{minutes}:{rest}"


def draw(picture: np.ndarray, marks: Iterable[Mark], *, seconds: float | None = None) -> np.ndarray:
    """A copy of `picture` (H, W, 3) uint8 with marks on it and, in its lower left corner, the time, if it is given."""
    height, width = picture.shape[:2]
    drawn = picture.copy()
    places, colours = _overlay(tuple(marks), height, width)
    drawn.reshape(-1, 3)[places] = colours
    if seconds is not None:
        label = _label(clock(seconds), _font_size(height, width), _OUTLINE, "white")
        drawn[-len(label) :, : label.shape[1]] = label[-height:, :width]
    return drawn


# Marks stay the same for many frames, so what they look like is kept: drawing is then no more than copying pixels.
@lru_cache(maxsize=8)
def _overlay(marks: tuple[Mark, ...], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels of a picture the marks cover, (P,) int64 in reading order, and with what, (P, 3) uint8."""
    image = Image.new("RGBA", (width, height))
    canvas = ImageDraw.Draw(image)
    line = max(2, min(height, width) // 160)
    edge = max(1, line // 2)
    for box, _, colour in marks:
        if box is None:
            continue
        x1, y1, x2, y2 = (side * (width, height)[i % 2] for i, side in enumerate(box))
        x2, y2 = max(x1, x2), max(y1, y2)
        canvas.rectangle((x1 - edge, y1 - edge, x2 + edge, y2 + edge), outline=_OUTLINE, width=line + 2 * edge)
        canvas.rectangle((x1, y1, x2, y2), outline=colour, width=line)

    # Labels come last: no line crosses them, nor do they hide each other.
    taken: list[tuple[int, int, int, int]] = []
    for box, label, colour in marks:
        if not label:
            continue
        pixels = _label(label, _font_size(height, width), colour, "black")
        tall, wide = pixels.shape[:2]
        x, y = (2.0, 2.0) if box is None else (box[0] * width, box[1] * height - tall)
        x, y = int(max(0, min(x, width - wide))), int(max(0, y))
        for left, top, right, bottom in sorted(taken, key=lambda other: other[1]):
            if x < right and left < x + wide and y < bottom and top < y + tall:
                y = bottom + 2
        y = max(0, min(y, height - tall))
        taken.append((x, y, x + wide, y + tall))
        image.paste(Image.fromarray(pixels), (x, y))

    covered = np.asarray(image).reshape(-1, 4)
    places = np.flatnonzero(covered[:, 3])
    return places, covered[places, :3]


@lru_cache(maxsize=64)
def _label(text: str, size: int, ground: str, ink: str) -> np.ndarray:
    """A line of text on its ground, uint8 (H, W, 3)."""
    font = _font(size)
    text = text.encode(errors="replace").decode()  # names of files and classes need not be UTF-8
    left, top, right, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).textbbox((0, 0), text, font=font)
    image = Image.new("RGB", (int(right - left) + 7, int(bottom - top) + 7), ground)
    ImageDraw.Draw(image).text((3 - left, 3 - top), text, fill=ink, font=font)
    return np.asarray(image)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # takes its time, which pictures without text need not

    # Pillow's own font has no letters but English ones.
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _font_size(height: int, width: int) -> int:
    return max(12, min(height // 22, width // 28))


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
    past_damage: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[int]:
    """Write `video` with its time and marks on every frame to `out` (.mp4): `marks_at` gives a frame's marks, in order.

    Frames are decoded, drawn on and encoded one by one; `progress(done, total)` is called after each. With
    `past_damage` the last sound picture, marked as damaged, stands for frames that are lost, which otherwise are a
    DataError. Where a clock jumped, a frame shows for a minute at most: MP4 has no room for years.

    Returns:
        The frames that are lost.
    """
    lost: list[int] = []
    total = len(video.pts)
    times = ((video.pts - video.pts[0]) * float(video.time_base)).tolist()
    size = picture_size(video)
    decoded = (stream_past_damage if past_damage else stream_frames)(video, range(total), size, threads=0)

    def drawn() -> Generator[np.ndarray, None, None]:
        picture = np.zeros((*size, 3), np.uint8)
        with closing(ahead(decoded, _AHEAD)) as frames:
            for (index, pixels), marks in zip(frames, marks_at, strict=True):
                if pixels is None:
                    lost.append(index)
                    yield draw(picture, [Mark(None, "damaged", TRUTH)], seconds=times[index])
                else:
                    picture = pixels
                    yield draw(picture, marks, seconds=times[index])
                if progress:
                    progress(index + 1, total)

    longest = max(int(_LONGEST_STILL / video.time_base), 1)
    pts = np.cumsum(np.minimum(np.diff(video.pts, prepend=video.pts[:1]), longest))
    with closing(drawn()) as pictures:
        encoder = choose_encoder()
        write_video(out, pictures, pts, video.time_base, encoder=encoder, options=QUICK[encoder], comment=_ANNOTATED)
    return lost


def is_annotated(path: Path) -> bool:
    """Whether `annotate_video` wrote the file `path`."""
    return read_comment(path) == _ANNOTATED


class _Found(Protocol):
    @property
    def action(self) -> str: ...
    @property
    def score(self) -> float: ...


class _Window(Protocol):
    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...
    @property
    def actions(self) -> Sequence[_Found | tuple[Any, ...]]: ...


def timeline(windows: Sequence[_Window], seconds: float, class_names: Sequence[str]) -> bytes:
    """A long video in one picture: a row for each class, and in it when that action was found, as high as its score.

    A light ground shows what was looked at, so that where nothing was found differs from where nobody looked.

    Args:
        windows: Stretches of the video that were looked at, in any order: `start` and `end` in seconds from its first
            frame, and `actions`, each with the name of its `action` and its `score` in [0, 1], or a tuple that begins
            with a class, by number or by name, and a score.
        seconds: How long the video is.
        class_names: The classes, in the order of their numbers.

    Returns:
        The picture as PNG.
    """
    # Takes its time, which who draws frames alone need not.
    from matplotlib.figure import Figure

    seconds = max(seconds, 1e-3)
    rows = len(class_names)
    figure = Figure(figsize=(12, 0.9 + 0.6 * rows), layout="constrained")
    axes = figure.subplots()
    looked_at = _joined((window.start, window.end) for window in windows)
    for row in range(rows):
        axes.broken_barh(looked_at, (row, 0.9), facecolor="#eeeeee")

    # One collection for each class and score: windows come by the ten thousand.
    spans: dict[tuple[int, float], list[tuple[float, float]]] = {}
    for window in windows:
        for found in window.actions:
            label, score = found[:2] if isinstance(found, tuple) else (found.action, found.score)
            row = class_names.index(label) if isinstance(label, str) else label
            height = round(min(max(float(score), 0.0), 1.0), 2)
            spans.setdefault((row, height), []).append((window.start, window.end))
    for (row, height), stretches in sorted(spans.items(), key=lambda item: -item[0][1]):
        bottom = row + 0.9 * (1 - height)
        # The edge keeps a moment of a day from being narrower than a pixel.
        axes.broken_barh(_joined(stretches), (bottom, 0.9 * height), color=class_colour(row), linewidth=0.8)

    names = [" ".join(name.encode(errors="replace").decode().split()) for name in class_names]
    names = [name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS - 3]}..." for name in names]
    axes.set_yticks([row + 0.45 for row in range(rows)], names, parse_math=False)
    axes.set(xlim=(0, seconds), ylim=(rows, -0.1))
    days = math.ceil(seconds / 12 / _TICKS[-1]) * _TICKS[-1]
    step = next((step for step in _TICKS if step >= seconds / 12), days)
    ticks = np.arange(0, seconds, step).tolist()
    axes.set_xticks(ticks, [clock(tick) if step < 1 else clock(tick)[:-3] for tick in ticks])
    meaning = "height: score, from 0 to 1; light: looked at, nothing found; white: not looked at"
    axes.set_xlabel(meaning, fontsize="small", color="#555555")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # names may have letters that the font lacks
        figure.savefig(buffer, format="png", dpi=120, metadata={"Software": _TIMELINE})
    return buffer.getvalue()


def is_timeline(path: Path) -> bool:
    """Whether the file `path` is what `timeline` gave."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Software") == _TIMELINE
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def _joined(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Stretches (start, end) as those (start, length) that they cover together, in order."""
    joined: list[tuple[float, float]] = []
    until = -math.inf
    for start, end in sorted(spans):
        if start > until:
            joined.append((start, end - start))
        else:
            joined[-1] = (joined[-1][0], max(until, end) - joined[-1][0])
        until = max(until, end)
    return joined


def data_url(picture: np.ndarray) -> str:
    """A JPEG of `picture` that can stand in a page."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
