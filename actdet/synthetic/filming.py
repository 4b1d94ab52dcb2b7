"""The camera of the rendered data set: how it shakes, colors and blurs, and what it sees of the people in a clip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from actdet.synthetic.figures import Array, Shapes
from actdet.synthetic.motions import Rng
from actdet.synthetic.painting import MARGIN, OVERSAMPLING

Frame = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@dataclass(frozen=True)
class Lens:
    """How the camera renders a clip of T frames."""

    views: Array
    """(T, 3) shift to the right and downward, in picture heights, and zoom of each frame."""
    gain: tuple[float, float, float]
    """Factors of red, green and blue about the middle gray."""
    offset: float
    """What is added to all colors, in 0..255."""
    noise: float
    """Standard deviation of the grain, in 0..255."""
    blur: float
    """Standard deviation of the blur, in picture heights."""
    mirrored: bool


def invent_lens(frames: int, rng: Rng) -> Lens:
    """Invent a camera in a hand or on a stand, with its own exposure, colors, noise and sharpness."""
    t = np.linspace(0, 1, frames)
    shake = rng.uniform(0, 0.009) if rng.random() < 0.7 else 0

    # A hand shakes at several frequencies at once, the higher ones less.
    views = np.zeros((frames, 3))
    for axis in range(2):
        for waves in (1.7, 4.1, 9.3):
            turns = waves * rng.uniform(0.7, 1.3) * t + rng.random()
            views[:, axis] += shake / waves**0.5 * np.sin(2 * np.pi * turns)
    views[:, 2] = 1 + rng.uniform(-0.02, 0.03) * (t - 0.5)

    contrast = rng.uniform(0.72, 1.15)
    warmth = rng.uniform(-0.1, 0.1)
    return Lens(
        views=views,
        gain=(contrast * (1 + warmth), contrast, contrast * (1 - warmth)),
        offset=rng.uniform(-20, 30),
        noise=rng.uniform(1, 9),
        blur=rng.uniform(0.003, 0.006) if rng.random() < 0.25 else 0.0,
        mirrored=bool(rng.random() < 0.5),
    )


def film(canvas: Image.Image, figures: list[Shapes], lens: Lens, size: tuple[int, int], rng: Rng) -> Iterator[Frame]:
    """Draw the figures on the canvas of their place, and yield what the lens shows of it.

    Args:
        canvas: The place, oversampled and with a margin, as `painting.Painter` makes it.
        figures: The people.
        lens: The camera.
        size: Width and height of the frames in pixels.
        rng: Where the noise comes from.

    Yields:
        (height, width, 3) uint8 RGB, frame by frame.
    """
    width, height = size
    unit = height * OVERSAMPLING
    margin = round(MARGIN * unit)
    polygons = np.concatenate([f.polygons for f in figures], 1) * unit + margin
    outlines = polygons.reshape(*polygons.shape[:2], -1).tolist()
    colors = [c for f in figures for c in f.colors]
    shadows = np.stack([f.shadow for f in figures], 1) * unit + [margin, margin, 0, 0]

    # The farthest polygons are drawn first.
    order = np.argsort(-np.concatenate([f.distance for f in figures], 1), axis=1, kind="stable").tolist()

    # Each frame shows another part of one large picture of noise, which is quicker than to draw noise for all pixels.
    tone = _tone_table(lens)
    grain = rng.normal(0, lens.noise, (height + 32, width + 32, 3)).astype(np.int16)

    for i, (left, top, right, bottom) in enumerate((_views(lens, size) * unit + margin).tolist()):
        image = canvas.copy()
        for u, v, across, deep in shadows[i].tolist():
            blob = _SHADOW.resize((max(1, round(2 * across)), max(1, round(2 * deep))))
            image.paste((0, 0, 0), (round(u - across), round(v - deep)), blob)
        draw = ImageDraw.Draw(image)
        for part in order[i]:
            draw.polygon(outlines[i][part], fill=colors[part])

        image = image.resize(size, Image.Resampling.BILINEAR, box=(left, top, right, bottom))
        if lens.blur:
            image = image.filter(ImageFilter.GaussianBlur(lens.blur * height))
        y, x = rng.integers(0, 32, 2)
        frame = np.asarray(image.point(tone)) + grain[y : y + height, x : x + width]
        frame = np.clip(frame, 0, 255).astype(np.uint8)
        yield np.ascontiguousarray(frame[:, ::-1]) if lens.mirrored else frame


def box_of(actors: list[Shapes], lens: Lens, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the tightest box (x1, y1, x2, y2) around the actors in all frames, in pixels of the picture."""
    width, height = size
    views = _views(lens, size)
    points = np.concatenate([a.polygons for a in actors], 1).reshape(len(views), -1, 2)
    seen = (points - views[:, None, :2]) / (views[:, None, 2:] - views[:, None, :2]) * size
    if lens.mirrored:
        seen[..., 0] = width - seen[..., 0]

    low = seen.min((0, 1))
    high = seen.max((0, 1))
    x1, x2 = np.clip((low[0], high[0]), 0, width).round(1).tolist()
    y1, y2 = np.clip((low[1], high[1]), 0, height).round(1).tolist()
    return x1, y1, x2, y2


def _views(lens: Lens, size: tuple[int, int]) -> Array:
    """Return the part of the scene that each frame shows: (T, 4) left, top, right, bottom in picture heights."""
    whole = np.array((size[0] / size[1], 1.0))
    half = whole / 2 / lens.views[:, 2:]
    middle = whole / 2 + lens.views[:, :2]
    return np.concatenate([middle - half, middle + half], 1)


def _tone_table(lens: Lens) -> list[int]:
    """Return what the lens makes of each value of red, green and blue, one channel after the other."""
    values = np.arange(256)
    return [int(v) for g in lens.gain for v in np.clip((values - 128) * g + 128 + lens.offset, 0, 255)]


def _soft_blob() -> Image.Image:
    """Return the mask of a shadow, dark in the middle and soft at its edge."""
    x, y = np.meshgrid(np.linspace(-1, 1, 48), np.linspace(-1, 1, 24))
    return Image.fromarray((105 * np.clip(1 - x * x - y * y, 0, 1) ** 0.8).astype(np.uint8))


_SHADOW = _soft_blob()
