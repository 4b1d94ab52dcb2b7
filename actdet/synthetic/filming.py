"""The camera of the rendered data set: how it shakes, colors and blurs, and what it sees of the people in a clip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from actdet.synthetic.figures import Array, Color, Shapes
from actdet.synthetic.motions import Rng
from actdet.synthetic.painting import MARGIN, OVERSAMPLING, Layer

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


def film(
    canvas: Image.Image,
    figures: list[Shapes],
    lens: Lens,
    size: tuple[int, int],
    rng: Rng,
    layers: Sequence[Layer] = (),
) -> Iterator[Frame]:
    """Draw the figures on the canvas of their place, and yield what the lens shows of it.

    Args:
        canvas: The place, oversampled and with a margin, as `painting.Painter` makes it.
        figures: The people.
        lens: The camera.
        size: Width and height of the frames in pixels.
        rng: Where the noise comes from.
        layers: Things between and in front of the people.

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

    distance = np.concatenate([f.distance for f in figures], 1)

    # Each frame shows another part of one large picture of noise, which is quicker than to draw noise for all pixels.
    tone = _tone_table(lens)
    grain = rng.normal(0, lens.noise, (height + 32, width + 32, 3)).astype(np.int16)

    for i, (left, top, right, bottom) in enumerate((_views(lens, size) * unit + margin).tolist()):
        image = canvas.copy()
        for u, v, across, deep in shadows[i].tolist():
            blob = _SHADOW.resize((max(1, round(2 * across)), max(1, round(2 * deep))))
            image.paste((0, 0, 0), (round(u - across), round(v - deep)), blob)
        _draw(image, outlines[i], distance[i], colors, layers)

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
    corners = np.concatenate([corners_in_pixels(actor, lens, size).reshape(-1, 2) for actor in actors])
    low = corners.min(0)
    high = corners.max(0)
    x1, x2 = np.clip((low[0], high[0]), 0, width).round(1).tolist()
    y1, y2 = np.clip((low[1], high[1]), 0, height).round(1).tolist()
    return x1, y1, x2, y2


def boxes_in_picture(figure: Shapes, lens: Lens, size: tuple[int, int]) -> Array:
    """Return the tightest box in each frame around what is in the picture of a figure, as if nothing hid it.

    Returns:
        (T, 4) x1 y1 x2 y2 in pixels; NaN in frames in which nothing is in the picture.
    """
    # Cut off what is outside of each edge of all polygons, as shares of the way from its start to its end. If a polygon
    # holds a corner of the picture, its edges cross both sides there, so they tell the box without the corner.
    start = corners_in_pixels(figure, lens, size)
    way = np.roll(start, -1, axis=2) - start
    with np.errstate(divide="ignore", invalid="ignore"):
        at_low = -start / way
        at_high = (size - start) / way
    enters = np.fmin(at_low, at_high).max(-1).clip(0, 1)
    leaves = np.fmax(at_low, at_high).min(-1).clip(0, 1)

    ends = np.stack([start + share[..., None] * way for share in (enters, leaves)], 3)
    ends[enters >= leaves] = np.nan
    ends = ends.reshape(len(start), -1, 2)
    low = np.fmin.reduce(ends, axis=1)
    high = np.fmax.reduce(ends, axis=1)
    return np.concatenate([low, high], 1)


def corners_in_pixels(figure: Shapes, lens: Lens, size: tuple[int, int]) -> Array:
    """Return the corners of a figure's polygons, (T, P, V, 2) in pixels of the picture."""
    views = _views(lens, size)[:, None, None]
    corners = (figure.polygons - views[..., :2]) / (views[..., 2:] - views[..., :2]) * size
    if lens.mirrored:
        corners[..., 0] = size[0] - corners[..., 0]
    return corners


def visible_shares(
    figures: list[Shapes],
    which: int,
    frames: NDArray[np.int64],
    lens: Lens,
    size: tuple[int, int],
    layers: Sequence[Layer] = (),
) -> Array:
    """Return how much of a figure is seen in some frames: within the picture, and not hidden by people or things.

    Args:
        figures: The people.
        which: The place of the figure among them.
        frames: (n,) the frames.
        lens: The camera.
        size: Width and height of the frames in pixels.
        layers: Things between and in front of the people.

    Returns:
        (n,) shares in [0, 1] of the area that the whole figure takes up where nothing hides it.
    """
    unit = size[1] * OVERSAMPLING
    margin = round(MARGIN * unit)
    views = (_views(lens, size) * unit + margin).round().astype(np.int64)
    shares = np.zeros(len(frames))
    for row, i in enumerate(frames.tolist()):
        bodies = [_Body(f.polygons[i] * unit + margin, f.distance[i], int(f is figures[which])) for f in figures]
        own = bodies[which]
        inside = _intersection(own.box, views[i])
        if (inside[:2] < inside[2:]).all():
            shares[row] = _marked_pixels(inside, bodies, layers) / _marked_pixels(own.box, [own], ())
    return np.minimum(shares, 1)


class _Body:
    """A figure in one frame.

    Attributes:
        outlines: (P, V, 2) corners of its polygons, in pixels of the canvas.
        distance: (P,) of them from the camera, in meters.
        mark: What it is drawn with.
        box: (4,) int64 x1 y1 x2 y2 around it, in pixels of the canvas.
    """

    def __init__(self, outlines: Array, distance: Array, mark: int) -> None:
        self.outlines = outlines
        self.distance = distance
        self.mark = mark
        low = np.floor(outlines.min((0, 1)))
        high = np.ceil(outlines.max((0, 1))) + 1
        self.box = np.concatenate([low, high]).astype(np.int64)


def _marked_pixels(box: NDArray[np.int64], bodies: list[_Body], layers: Sequence[Layer]) -> int:
    """Return in how many pixels of a box of the canvas bodies with the mark 1 are seen."""

    def is_near(other: NDArray[np.int64]) -> bool:
        common = _intersection(box, other)
        return bool((common[:2] < common[2:]).all())

    left, top, right, bottom = box.tolist()
    image = Image.new("L", (right - left, bottom - top))
    near = [body for body in bodies if is_near(body.box)]
    outlines = np.concatenate([body.outlines for body in near]) - (left, top)
    marks = [body.mark for body in near for _ in body.outlines]
    distance = np.concatenate([body.distance for body in near])

    covers = []
    for layer in layers:
        x, y = layer.corner
        width, height = layer.mask.size
        if is_near(np.array((x, y, x + width, y + height))):
            covers.append(replace(layer, image=Image.new("L", layer.mask.size), corner=(x - left, y - top)))

    _draw(image, outlines.reshape(len(outlines), -1).tolist(), distance, marks, covers)
    return int(np.count_nonzero(np.asarray(image)))


def _intersection(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the box (4,) that two boxes have in common; if there is none, a side of it is negative or 0."""
    return np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])])


def _draw(
    image: Image.Image,
    outlines: list[list[float]],
    distance: Array,
    colors: Sequence[Color | int],
    layers: Sequence[Layer],
) -> None:
    """Draw polygons and layers on a picture, in place, from the farthest to the nearest.

    Args:
        image: The picture.
        outlines: P polygons, as x and y of their corners in turn, in pixels of the picture.
        distance: (P,) of them from the camera.
        colors: Of each polygon.
        layers: Their corners are in pixels of the picture.
    """
    draw = ImageDraw.Draw(image)
    waiting = sorted(layers, key=lambda layer: layer.distance)
    for part in np.argsort(-distance, kind="stable").tolist():
        while waiting and waiting[-1].distance > distance[part]:
            _paste(image, waiting.pop())
        draw.polygon(outlines[part], fill=colors[part])
    while waiting:
        _paste(image, waiting.pop())


def _paste(image: Image.Image, layer: Layer) -> None:
    image.paste(layer.image, layer.corner, layer.mask)


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
