"""The brush for the places of the rendered data set: flat and boxy things in meters, seen by a `Camera`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from actdet.synthetic.figures import Camera, Color, shade, tint
from actdet.synthetic.motions import Prop, Rng

# Pixels of the canvas for one pixel of the video, each way.
OVERSAMPLING = 2

# The margin around the picture into which a shaking camera may look, in picture heights.
MARGIN = 0.06


@dataclass(frozen=True)
class Layer:
    """A thing that is painted apart from the canvas, because people may be behind it."""

    image: Image.Image
    mask: Image.Image
    """Where the thing is: of mode L and as large as `image`."""
    corner: tuple[int, int]
    """Where their upper left corner is on the canvas."""
    distance: float
    """From the camera, in meters. Whoever is farther away is behind it."""


class Painter:
    """Paints the canvas of one clip, an oversampled picture with a margin.

    Attributes:
        image: The canvas.
        near: Distance of the ground at the lower edge of the picture, in meters.
        half: Half of the width that is in view, in meters per meter of distance.
    """

    def __init__(self, camera: Camera, height: int, mode: str = "RGB") -> None:
        """Start with a canvas for videos of this height in pixels: black, or transparent if the mode is RGBA."""
        self._camera = camera
        self._unit = height * OVERSAMPLING
        self._offset = round(MARGIN * self._unit)
        width = round(camera.aspect * self._unit)
        self.image = Image.new(mode, (width + 2 * self._offset, self._unit + 2 * self._offset))
        self._draw = ImageDraw.Draw(self.image)
        self.near = camera.focal * camera.up / (1.1 - camera.horizon)
        self.half = 0.75 * camera.aspect / camera.focal

    def wall(self, color: Color, x: float, z: float, width: float, height: float, y: float) -> None:
        """Paint a rectangle that faces the camera, with its lower left corner at x and z."""
        self._face(color, (x, y, z), (x + width, y, z), (x + width, y, z + height), (x, y, z + height))

    def floor(self, color: Color, x: float, y: float, width: float, depth: float, z: float = 0) -> None:
        """Paint a level rectangle, with its near left corner at x and y."""
        self._face(color, (x, y, z), (x + width, y, z), (x + width, y + depth, z), (x, y + depth, z))

    def box(self, color: Color, x: float, y: float, z: float, width: float, depth: float, height: float) -> None:
        """Paint a cuboid with its left, near, lower corner at (x, y, z), lit from above."""
        # The camera looks at the middle of the stage, so it sees the side that is nearer to that.
        side = x if x > 0 else x + width
        far = y + depth
        top = z + height
        self._face(shade(color, 0.66), (side, y, z), (side, far, z), (side, far, top), (side, y, top))
        self.wall(shade(color, 0.85), x, z, width, height, y)
        if self._camera.up > top:
            self.floor(shade(color, 1.1), x, y, width, depth, top)

    def disc(self, color: Color, x: float, y: float, z: float, radius: float) -> None:
        """Paint a disc that faces the camera."""
        middle, scale = self._camera.project(np.array((x, y, z)))
        u, v = middle * self._unit + self._offset
        r = radius * float(scale) * self._unit
        self._draw.ellipse((u - r, v - r, u + r, v + r), fill=color)

    def leaves(self, rng: Rng, color: Color, x: float, y: float, z: float, size: float) -> None:
        """Paint the crown of a tree or a bush; the leaves get lighter toward the top."""
        for tone in np.linspace(0.75, 1.2, 14):
            dx = rng.normal(0, 0.45 * size)
            dz = rng.normal(0, 0.3 * size) + 0.4 * size * (tone - 1)
            self.disc(shade(color, tone), x + dx, y, z + dz, rng.uniform(0.3, 0.55) * size)

    def sky(self, high: Color, low: Color) -> None:
        """Fill the picture with a color that changes from the top to the bottom."""
        width, height = self.image.size
        for y in range(height):
            r, g, b = (round(p + (q - p) * y / height) for p, q in zip(high, low, strict=True))
            self._draw.line((0, y, width, y), fill=(r, g, b))

    def prop(self, prop: Prop, rng: Rng) -> None:
        """Paint a thing on the ground, in a color of its own."""
        color = tint(rng, (0.1, 0.6), (0.3, 0.85))
        x = prop.x
        y = prop.y
        if prop.kind == "mat":
            self.floor(shade(color, 0.8), x - 1.0, y - 0.42, 2.0, 0.84)
            self.floor(color, x - 1.0, y - 0.40, 2.0, 0.80, 0.03)
        elif prop.kind in ("chair", "bench"):
            self._seat(color, x, y, 0.46 if prop.kind == "chair" else 1.3, prop.facing)
        elif prop.kind == "table":
            for left in (x - 0.55, x + 0.49):
                self.box(shade(color, 0.8), left, y, 0, 0.06, 0.06, 0.72)
            self.box(color, x - 0.6, y - 0.05, 0.72, 1.2, 0.6, 0.05)
        elif prop.kind == "crate":
            self.box(color, x - 0.3, y, 0, 0.6, 0.4, rng.uniform(0.3, 0.8))
        elif prop.kind == "parcel":
            self.box(color, x - 0.12, y, 0, 0.24, 0.14, 0.26)
        elif prop.kind == "pillar":
            self.box(color, x - 0.16, y, 0, 0.32, 0.32, 3.2)
        else:
            self.box(color, x - 0.16, y, 0, 0.32, 0.3, 0.35)
            self.leaves(rng, (62, 108, 62), x, y, 0.75, 0.42)

    def _seat(self, color: Color, x: float, y: float, width: float, facing: int) -> None:
        """Paint a chair or a bench; its back is behind the seat if it faces the camera, otherwise at a side."""
        across, deep = (width, 0.46) if facing == 0 else (0.46, width)
        left = x - across / 2
        near = y - deep / 2
        for leg_y in (near + deep - 0.05, near):
            for leg_x in (left, left + across - 0.05):
                self.box(shade(color, 0.6), leg_x, leg_y, 0, 0.05, 0.05, 0.42)
        if facing == 0:
            self.box(color, left, near + deep - 0.05, 0.42, across, 0.05, 0.48)
        self.box(color, left, near, 0.38, across, deep, 0.05)
        if facing != 0:
            self.box(color, left if facing > 0 else left + across - 0.05, near, 0.42, 0.05, deep, 0.48)

    def _face(self, color: Color, *corners: tuple[float, float, float]) -> None:
        """Paint a polygon between points in meters."""
        outline, _ = self._camera.project(np.array(corners))
        self._draw.polygon((outline * self._unit + self._offset).ravel().tolist(), fill=color)


def paint_layers(props: list[Prop], camera: Camera, height: int, rng: Rng) -> list[Layer]:
    """Paint things on the ground one by one; those out of the picture are left out.

    Args:
        props: The things. Mats are none: nothing can be behind them.
        camera: What looks at them.
        height: Of the video in pixels.
        rng: Where their colors come from.
    """
    layers = []
    for prop in props:
        painter = Painter(camera, height, "RGBA")
        painter.prop(prop, rng)
        box = painter.image.getbbox()
        if box is None:
            continue

        # Whoever sits on a seat is in front of it, although half of the seat is nearer.
        distance = prop.y + 0.3 if prop.kind in ("chair", "bench") else prop.y
        thing = painter.image.crop(box)
        layers.append(Layer(thing.convert("RGB"), thing.getchannel("A"), box[:2], distance))
    return layers
