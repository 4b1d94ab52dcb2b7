"""Pictures for people: boxes drawn on frames, annotated videos, timelines, and images that stand in a web page."""

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

from actdet.video.damage import stream_past_damage
from actdet.video.decoding import stream_frames
from actdet.video.encoding import QUICK, choose_encoder, read_comment, write_video
from actdet.video.info import VideoInfo
from actdet.video.prefetch import prefetch

# One color for each class; with more classes than colors, they are used again from the first.
COLORS = ("#ff4136", "#ffb000", "#b14cff", "#00b8d4", "#7bd600", "#ff6fb5")

# The color of annotated boxes.
TRUTH = "#ffffff"

_NO_ACTION = "#bbbbbb"

# Lies on both sides of a box's line, so that the box stands out on walls that are as bright as itself.
_OUTLINE = "black"

# Notes in the metadata of timelines and annotated videos, by which they are recognized later.
_TIMELINE = "actdet: timeline"
_ANNOTATED = "actdet: annotated"

# Annotated pictures are wide enough for a label to be readable and narrow enough for a small file, in pixels.
_LEAST_WIDTH = 480
_MOST_WIDTH = 1280

# Only pictures that are more than twice as tall as wide reach this height.
_MOST_HEIGHT = 2560

# Seconds between the labeled times of a timeline, from a tenth of a second to a day.
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)

# Longer class names are cut off beside a timeline.
_MOST_LETTERS = 40

# A timeline has a row for each of so many actors, those who are seen first.
_MOST_ACTORS = 40

# A frame of an annotated video is shown for at most so many seconds.
_LONGEST_STILL = 60

# So many frames are decoded while earlier ones are drawn on.
_PREFETCHED = 8


class Mark(NamedTuple):
    """A label, and the box that it belongs to.

    box: x1, y1, x2, y2 as shares of the picture's width and height; None for a label alone.
    """

    box: tuple[float, float, float, float] | None
    label: str
    color: str


# Marks frames for which there is no answer, which is not the same as "no action".
NOT_LOOKED_AT = Mark(None, "not looked at", TRUTH)

# Marks frames whose answer is about two scenes, which no training clip shows.
CUT = Mark(None, "cut to another scene: not reliable", TRUTH)


def no_action_mark(score: float) -> Mark:
    """The mark of a picture in which no action was found; `score` is the score of the most likely one."""
    return Mark(None, f"no action (top score: {score:.2f})", _NO_ACTION)


def class_color(label: int) -> str:
    """The color in which class number `label` is drawn."""
    return COLORS[label % len(COLORS)]


def clock(seconds: float) -> str:
    """A time as players show it, with hundredths: 0:07.25, 1:02:07.25."""
    hundredths = round(100 * seconds)
    minutes, hundredths = divmod(hundredths, 6000)
    hours, minutes = divmod(minutes, 60)
    rest = f"{hundredths // 100:02}.{hundredths % 100:02}"
    return f"{hours}:{minutes:02}:{rest}" if hours else f"{minutes}:{rest}"


def draw(picture: np.ndarray, marks: Iterable[Mark], *, seconds: float | None = None) -> np.ndarray:
    """A copy of `picture`, (H, W, 3) uint8, with marks on it and the time in its lower left corner.

    Args:
        picture: (H, W, 3) uint8 RGB; it is not changed.
        marks: Boxes and labels. Later boxes are drawn over earlier ones, and labels over all boxes.
        seconds: The time to show; None shows none.
    """
    height, width = picture.shape[:2]
    drawn = picture.copy()
    places, colors = _overlay(tuple(marks), height, width)
    drawn.reshape(-1, 3)[places] = colors

    if seconds is not None:
        label = _label(clock(seconds), _font_size(height, width), _OUTLINE, "white")
        drawn[-len(label) :, : label.shape[1]] = label[-height:, :width]
    return drawn


# The same marks stay for many frames, so their pixels are kept: drawing a frame then only copies them.
@lru_cache(maxsize=8)
def _overlay(marks: tuple[Mark, ...], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels that marks cover in a picture.

    Returns:
        The numbers of the P covered pixels in reading order, (P,) int64, and their colors, (P, 3) uint8.
    """
    image = Image.new("RGBA", (width, height))
    canvas = ImageDraw.Draw(image)
    for mark in marks:
        if mark.box is not None:
            _draw_box(canvas, mark.box, mark.color, height, width)

    # Labels come after all boxes, so that no line crosses them, and none may hide another one.
    taken: list[tuple[int, int, int, int]] = []
    for box, text, color in marks:
        if not text:
            continue
        label = _label(text, _font_size(height, width), color, "black")
        label_height, label_width = label.shape[:2]
        x, y = _free_place(box, label_height, label_width, height, width, taken)
        taken.append((x, y, x + label_width, y + label_height))
        image.paste(Image.fromarray(label), (x, y))

    rgba = np.asarray(image).reshape(-1, 4)
    covered = np.flatnonzero(rgba[:, 3])
    return covered, rgba[covered, :3]


def _draw_box(
    canvas: ImageDraw.ImageDraw, box: tuple[float, float, float, float], color: str, height: int, width: int
) -> None:
    """Draw the outline of a box, given in shares of the picture, on a canvas of `height` x `width` pixels."""
    line = max(2, min(height, width) // 160)
    edge = max(1, line // 2)

    x1 = box[0] * width
    y1 = box[1] * height
    x2 = max(x1, box[2] * width)
    y2 = max(y1, box[3] * height)

    canvas.rectangle((x1 - edge, y1 - edge, x2 + edge, y2 + edge), outline=_OUTLINE, width=line + 2 * edge)
    canvas.rectangle((x1, y1, x2, y2), outline=color, width=line)


def _free_place(
    box: tuple[float, float, float, float] | None,
    label_height: int,
    label_width: int,
    height: int,
    width: int,
    taken: Iterable[tuple[int, int, int, int]],
) -> tuple[int, int]:
    """The left and upper pixel of a label: on top of its box, within the picture, and beside other labels.

    Args:
        box: The label's box in shares of the picture; a label without one goes to the upper left corner.
        label_height: Pixels of the label.
        label_width: Pixels of the label.
        height: Pixels of the picture.
        width: Pixels of the picture.
        taken: Left, top, right and bottom pixel of each label that has its place already.
    """
    x = 2.0 if box is None else box[0] * width
    y = 2.0 if box is None else box[1] * height - label_height
    x = int(max(0, min(x, width - label_width)))
    y = int(max(0, y))

    # From the topmost of the other labels to the lowest, move down past each one that would be covered.
    for left, top, right, bottom in sorted(taken, key=lambda other: other[1]):
        if x < right and left < x + label_width and y < bottom and top < y + label_height:
            y = bottom + 2
    return x, max(0, min(y, height - label_height))


@lru_cache(maxsize=64)
def _label(text: str, size: int, ground: str, ink: str) -> np.ndarray:
    """A line of text, (H, W, 3) uint8: letters of the color `ink` on a ground of the color `ground`."""
    font = _font(size)

    # Names of files and classes need not be UTF-8.
    text = text.encode(errors="replace").decode()

    left, top, right, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).textbbox((0, 0), text, font=font)
    image = Image.new("RGB", (int(right - left) + 7, int(bottom - top) + 7), ground)
    ImageDraw.Draw(image).text((3 - left, 3 - top), text, fill=ink, font=font)
    return np.asarray(image)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    # This import takes a while, and pictures without text do not need it.
    import matplotlib

    # Pillow's own font has no letters but English ones.
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _font_size(height: int, width: int) -> int:
    return max(12, min(height // 22, width // 28))


def picture_size(video: VideoInfo) -> tuple[int, int]:
    """(height, width), both even, of the pictures in which a video is annotated."""
    width = min(max(video.width, _LEAST_WIDTH), _MOST_WIDTH)
    width = min(width, max(16, _MOST_HEIGHT * video.width // video.height))
    height = min(max(16, round(video.height * width / video.width)), _MOST_HEIGHT)
    return round(height / 2) * 2, width // 2 * 2


def annotate_video(
    video: VideoInfo,
    marks_at: Iterable[Sequence[Mark]],
    out: Path,
    *,
    frames: range | None = None,
    past_damage: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[int]:
    """Write `video` to `out` with the time and marks on every frame.

    Frames are decoded, drawn on and encoded one by one, in constant memory. Where the clock jumped, a frame is shown
    for a minute at most, because the time stamps of an MP4 file have no room for years.

    Args:
        video: The video to annotate.
        marks_at: The marks of each frame, in order.
        out: Path of the MP4 file.
        frames: The frames to annotate; by default all.
        past_damage: Replace frames that cannot be decoded by the last good picture, labeled as damaged. Otherwise they
            are an error.
        progress: Called with (frames done, frames in all) after each frame.

    Returns:
        The numbers of the frames that could not be decoded.

    Raises:
        DataError: If a frame cannot be decoded and `past_damage` is false, or if `out` cannot be written.
    """
    lost: list[int] = []
    frames = range(len(video.pts)) if frames is None else frames
    times = ((video.pts - video.pts[0]) * float(video.time_base)).tolist()
    size = picture_size(video)
    stream = stream_past_damage if past_damage else stream_frames
    decoded = stream(video, frames, size, threads=0)

    def drawn() -> Generator[np.ndarray, None, None]:
        picture = np.zeros((*size, 3), np.uint8)
        with closing(prefetch(decoded, _PREFETCHED)) as ready:
            for (index, pixels), marks in zip(ready, marks_at, strict=True):
                if pixels is None:
                    lost.append(index)
                    yield draw(picture, [Mark(None, "damaged", TRUTH)], seconds=times[index])
                else:
                    picture = pixels
                    yield draw(picture, marks, seconds=times[index])
                if progress:
                    progress(index + 1 - frames.start, len(frames))

    longest = max(int(_LONGEST_STILL / video.time_base), 1)
    shown = video.pts[frames.start : frames.stop]
    pts = np.cumsum(np.minimum(np.diff(shown, prepend=shown[:1]), longest))
    with closing(drawn()) as pictures:
        encoder = choose_encoder()
        write_video(out, pictures, pts, video.time_base, encoder=encoder, options=QUICK[encoder], comment=_ANNOTATED)
    return lost


def is_annotated(path: Path) -> bool:
    """Whether `annotate_video` wrote the file `path`."""
    return read_comment(path) == _ANNOTATED


class _Found(Protocol):
    """An action that was found, as `actdet.prediction.predictor.FoundAction`."""

    @property
    def action(self) -> str: ...
    @property
    def score(self) -> float: ...


class _Window(Protocol):
    """A stretch of a video that was looked at, as `actdet.prediction.predictor.Window`."""

    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...
    @property
    def actions(self) -> Sequence[_Found | tuple[Any, ...]]: ...
    @property
    def cut(self) -> bool: ...


class _Tube(Protocol):
    """What an actor does, as `actdet.prediction.actors.FoundTube`."""

    @property
    def actor(self) -> int: ...
    @property
    def action(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...


def timeline(windows: Sequence[_Window], seconds: float, class_names: Sequence[str]) -> bytes:
    """A long video in one picture: a row for each class, with a bar wherever that action was found.

    The height of a bar is the score. A light ground shows the parts that were looked at, so that parts in which nothing
    was found differ from parts at which nobody looked. Windows with a cut to another scene are hatched.

    Args:
        windows: Stretches of the video that were looked at, in any order: `start` and `end` in seconds from its first
            frame, `actions`, each with the name of its `action` and its `score` in [0, 1], or a tuple that begins with
            a class, by number or by name, and a score, and `cut`, whether the window has a cut to another scene.
        seconds: Length of the video.
        class_names: The classes, in the order of their numbers.

    Returns:
        The picture as PNG.
    """
    bars = {
        _Bar(row, score, class_color(row)): stretches
        for (row, score), stretches in _spans_by_score(windows, class_names).items()
    }
    return _plot_bars(bars, list(class_names), windows, seconds)


def actor_timeline(
    tubes: Sequence[_Tube], windows: Sequence[_Window], seconds: float, class_names: Sequence[str]
) -> bytes:
    """A long video in one picture: a row for each actor, with a bar of an action's color for as long as that lasts.

    Args:
        tubes: What actors do: the number of the `actor`, the `action`, its `score`, and `start` and `end` in seconds.
        windows: As in `timeline`; their actions are not used.
        seconds: Length of the video.
        class_names: The classes, in the order of their numbers.

    Returns:
        The picture as PNG.
    """
    actors = sorted({tube.actor for tube in tubes})[:_MOST_ACTORS]
    bars: dict[_Bar, list[tuple[float, float]]] = {}
    for tube in tubes:
        if tube.actor in actors:
            color = class_color(class_names.index(tube.action))
            bar = _Bar(actors.index(tube.actor), round(min(max(tube.score, 0.0), 1.0), 2), color)
            bars.setdefault(bar, []).append((tube.start, tube.end))

    rows = []
    for actor in actors:
        actions = dict.fromkeys(tube.action for tube in tubes if tube.actor == actor)
        rows.append(f"{actor}: {', '.join(actions)}")
    return _plot_bars(bars, rows or ["no action"], windows, seconds)


class _Bar(NamedTuple):
    """What bars of one kind have in common."""

    row: int
    score: float
    color: str


def _plot_bars(
    bars: dict[_Bar, list[tuple[float, float]]], rows: Sequence[str], windows: Sequence[_Window], seconds: float
) -> bytes:
    """Plot rows of bars over the time of a video, and return the picture as PNG.

    Args:
        bars: The (start, end) of the bars of each kind.
        rows: The names of the rows.
        windows: Stretches that were looked at.
        seconds: Length of the video.
    """
    # This import takes a while, and drawing on frames does not need it.
    from matplotlib.figure import Figure

    seconds = max(seconds, 1e-3)
    figure = Figure(figsize=(12, 0.9 + 0.6 * len(rows)), layout="constrained")
    axes = figure.subplots()

    looked_at = _joined((window.start, window.end) for window in windows)
    for row in range(len(rows)):
        axes.broken_barh(looked_at, (row, 0.9), facecolor="#eeeeee")

    # Higher bars are drawn first, so that lower ones on top of them stay visible.
    for (row, score, color), stretches in sorted(bars.items(), key=lambda item: -item[0].score):
        bottom = row + 0.9 * (1 - score)
        # The edge keeps a moment of a long day from being narrower than a pixel.
        axes.broken_barh(_joined(stretches), (bottom, 0.9 * score), color=color, linewidth=0.8)

    meaning = "height: score, from 0 to 1; light: looked at, nothing found; white: not looked at"
    cut = _joined((window.start, window.end) for window in windows if window.cut)
    if cut:
        meaning += "; hatched: not reliable, cut to another scene"
        for row in range(len(rows)):
            axes.broken_barh(cut, (row, 0.9), facecolor="none", edgecolor="#555555", hatch="///", linewidth=0)

    names = [_short_name(name) for name in rows]
    axes.set_yticks([row + 0.45 for row in range(len(rows))], names, parse_math=False)
    axes.set(xlim=(0, seconds), ylim=(len(rows), -0.1))

    distance = _tick_distance(seconds)
    ticks = np.arange(0, seconds, distance).tolist()
    axes.set_xticks(ticks, [clock(tick) if distance < 1 else clock(tick)[:-3] for tick in ticks])
    axes.set_xlabel(meaning, fontsize="small", color="#555555")

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The font may lack letters of a class name, which is nothing to warn of.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(buffer, format="png", dpi=120, metadata={"Software": _TIMELINE})
    return buffer.getvalue()


def _spans_by_score(
    windows: Iterable[_Window], class_names: Sequence[str]
) -> dict[tuple[int, float], list[tuple[float, float]]]:
    """The (start, end) of all windows with an action, by its class and by its score in hundredths.

    Windows come by the ten thousand, and bars of one class and score can be drawn together.
    """
    spans: dict[tuple[int, float], list[tuple[float, float]]] = {}
    for window in windows:
        for found in window.actions:
            label, score = found[:2] if isinstance(found, tuple) else (found.action, found.score)
            row = class_names.index(label) if isinstance(label, str) else label
            height = round(min(max(float(score), 0.0), 1.0), 2)
            spans.setdefault((row, height), []).append((window.start, window.end))
    return spans


def _short_name(name: str) -> str:
    """A class name on one line, of valid Unicode, and no longer than there is room for."""
    name = " ".join(name.encode(errors="replace").decode().split())
    return name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS - 3]}..."


def _tick_distance(seconds: float) -> float:
    """Seconds between the labeled times on the axis of a video of `seconds`: a round number, for about 12 of them."""
    wanted = seconds / 12
    if wanted > _TICKS[-1]:
        return math.ceil(wanted / _TICKS[-1]) * _TICKS[-1]
    return next(tick for tick in _TICKS if tick >= wanted)


def is_timeline(path: Path) -> bool:
    """Whether `timeline` made the file `path`."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Software") == _TIMELINE
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def _joined(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Stretches (start, end) as the fewest (start, length) that cover the same, in order."""
    joined: list[tuple[float, float]] = []
    until = -math.inf
    for start, end in sorted(spans):
        if start > until:
            joined.append((start, end - start))
        else:
            first = joined[-1][0]
            joined[-1] = (first, max(until, end) - first)
        until = max(until, end)
    return joined


def data_url(picture: np.ndarray) -> str:
    """`picture`, (H, W, 3) uint8, as the address of a JPEG image that a page can hold in itself."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
