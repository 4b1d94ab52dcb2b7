"""Jointed people for the rendered data set: who they are, how their joints turn, and the shapes to draw.

A body is a skeleton in metres: x to the right of the picture, y away from the camera, z up.  Its joint angles
over a whole clip become, all frames at once, the points of the skeleton and then thick tapered capsules seen
through a `Camera`; `_filming` paints these from the farthest to the nearest.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Colour = tuple[int, int, int]

SIDES = ("l", "r")
_TRUNK = ("lean", "tilt", "bend", "sway", "twist", "nod", "turn")
_LIMB = ("shoulder", "spread", "roll", "elbow", "hip", "split", "knee")
_INDEX = {name: i for i, name in enumerate([*_TRUNK, *(f"{j}_{s}" for s in SIDES for j in _LIMB)])}

_HUES = (0.0, 0.03, 0.07, 0.10, 0.14, 0.24, 0.37, 0.47, 0.54, 0.58, 0.61, 0.64, 0.72, 0.82, 0.93, 0.98)
_SKINS = ("#f3d3bd", "#e6b894", "#d19b72", "#b57a4f", "#8d5a35", "#5d3a24", "#40281a")
_HAIRS = ("#17130f", "#2f2018", "#5a3a22", "#8c6239", "#c9a15c", "#8a3b1d", "#9a9a98", "#d8d6d0")


@dataclass(frozen=True)
class Person:
    """Looks of one person; lengths in metres, `build` and `shoulders` relative to an average body."""

    height: float
    build: float
    shoulders: float
    hair_style: str
    pattern: str
    skirt: bool
    colours: dict[str, Colour]


@dataclass
class Track:
    """A person's motion over T frames: joint angles (T, J) in radians, ground position (T, 2), heading (T).

    The position is that below the pelvis or, if `rooted`, that between the feet, over which it then tips.
    `parcel` is the side of the hand that takes one, and the frame; before, it lies on the ground.
    """

    angles: Array
    ground: Array
    yaw: Array
    rooted: bool = False
    parcel: tuple[str, int] | None = None


@dataclass(frozen=True)
class Camera:
    """A level pinhole camera `up` metres above the ground; lengths in the picture are in picture heights."""

    focal: float
    up: float
    horizon: float
    aspect: float

    def project(self, points: Array) -> tuple[Array, Array]:
        """Picture coordinates (..., 2) of points (..., 3), and the size of a metre at each of them."""
        scale = self.focal / np.maximum(points[..., 1], 0.3)
        across = self.aspect / 2 + points[..., 0] * scale
        return np.stack([across, self.horizon + (self.up - points[..., 2]) * scale], -1), scale


@dataclass(frozen=True)
class Shapes:
    """Polygons (T, P, V, 2) in the picture, their distance (T, P), colours (P), and the shadow (T, 4)."""

    polygons: Array
    distance: Array
    colours: list[Colour]
    shadow: Array


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """An RGB colour from hue, saturation and value in 0..1."""
    r, g, b = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return round(r * 255), round(g * 255), round(b * 255)


def tint(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Colour:
    """A random colour of a hue that paint and cloth often have."""
    return hsv(rng.choice(_HUES) + rng.normal(0, 0.012), rng.uniform(*saturation), rng.uniform(*value))


def shade(colour: Colour, factor: float) -> Colour:
    """The colour made darker (factor below 1) or lighter."""
    r, g, b = (min(255, round(c * factor)) for c in colour)
    return r, g, b


def invent_person(rng: np.random.Generator) -> Person:
    """A new person: body, skin, hair and clothes."""

    def cloth() -> Colour:
        saturation, value = ((0.0, 0.15), (0.1, 0.95)) if rng.random() < 0.35 else ((0.3, 0.75), (0.22, 0.85))
        return tint(rng, saturation, value)

    def natural(palette: tuple[str, ...]) -> Colour:
        code = palette[rng.integers(len(palette))]
        r, g, b = (int(code[i : i + 2], 16) for i in (1, 3, 5))
        return shade((r, g, b), rng.uniform(0.9, 1.08))

    skin, shirt, trousers = natural(_SKINS), cloth(), cloth()
    long_sleeves, shorts, skirt = rng.random() < 0.6, rng.random() < 0.2, rng.random() < 0.15
    colours = {
        "skin": skin,
        "hair": natural(_HAIRS),
        "shirt": shirt,
        "second": cloth(),
        "upper arm": shirt,
        "forearm": shirt if long_sleeves else skin,
        "hips": trousers,
        "thigh": skin if skirt else trousers,
        "shin": skin if shorts or skirt else trousers,
        "shoe": tint(rng, (0.0, 0.4), (0.08, 0.9)),
        "eye": (52, 38, 34),
        "parcel": cloth(),
    }
    return Person(
        height=rng.uniform(1.5, 1.92),
        build=rng.uniform(0.88, 1.28),
        shoulders=rng.uniform(0.9, 1.12),
        hair_style=str(rng.choice(["bald", "short", "short", "short", "long", "long"])),
        pattern=str(rng.choice(["plain", "plain", "two-coloured", "striped"])),
        skirt=skirt,
        colours=colours,
    )


def overlay(angles: Array, weight: Array | float, only: str = "", **degrees: Array | float) -> None:
    """Draw the named joints of `angles` (T, J) towards the given degrees, in place.

    `weight` (0..1, over time) says how far.  Joints of limbs are set on both sides, or `only` on "l" or "r".
    """
    for name, target in degrees.items():
        for joint in [name] if name in _TRUNK else [f"{name}_{s}" for s in only or SIDES]:
            column = angles[:, _INDEX[joint]]
            column += weight * (np.radians(target) - column)


def rest_angles(frames: int) -> Array:
    """Angles (T, J) of a person who stands upright with hanging arms."""
    angles = np.zeros((frames, len(_INDEX)))
    overlay(angles, 1, shoulder=4, spread=9, elbow=14, roll=10, split=4, hip=3, knee=6)
    return angles


class _Part(NamedTuple):
    """A capsule of the body: from joint to joint, its radii there in body heights, and its colour's name."""

    start: str
    end: str
    start_radius: float
    end_radius: float
    colour: str


def shape_person(person: Person, track: Track, camera: Camera, light: float) -> Shapes:
    """What to draw for the person in every frame; light falls from the left (-1) or the right (1)."""
    joints = _skeleton(person, track)
    parts = _parts(person)
    if track.parcel:
        parts.append(_Part("handle", "parcel", 0.035, 0.065, "parcel"))
    starts = np.stack([joints[part.start] for part in parts], 1)
    ends = np.stack([joints[part.end] for part in parts], 1)
    broad = np.array([1 if part.colour in ("skin", "hair", "eye") else person.build for part in parts])
    a, scale_a = camera.project(starts)
    b, scale_b = camera.project(ends)
    ra = scale_a * broad * person.height * [part.start_radius for part in parts]
    rb = scale_b * broad * person.height * [part.end_radius for part in parts]

    distance = (starts[..., 1] + ends[..., 1]) / 2
    trunk = np.array([part.colour in ("shirt", "second", "hips") for part in parts])
    distance[:, trunk] = distance[:, trunk].mean(1, keepdims=True)
    colours = [person.colours[part.colour] for part in parts]
    lit = [i for i, part in enumerate(parts) if part.colour not in ("hair", "eye")]
    towards_light = np.stack([light * 0.11 * (ra + rb), -0.07 * (ra + rb)], -1)
    sheen = _capsules(a + towards_light, b + towards_light, 0.65 * ra, 0.65 * rb)
    return Shapes(
        polygons=np.concatenate([_capsules(a, b, ra, rb), sheen[:, lit]], 1),
        distance=np.concatenate([distance, distance[:, lit] - 1e-3], 1),
        colours=[shade(colour, 0.84) for colour in colours] + [shade(colours[i], 1.06) for i in lit],
        shadow=_shadow(joints, camera),
    )


# The trunk, from the hips up: height within it, half its width, and radius.
_BANDS = (
    (0, 0.070, 0.072),
    (0.25, 0.062, 0.070),
    (0.5, 0.066, 0.072),
    (0.75, 0.080, 0.074),
    (0.97, 0.088, 0.060),
)


def _parts(person: Person) -> list[_Part]:
    """What a body is made of."""
    parts = []
    for s in SIDES:
        parts += [
            _Part(f"shoulder_{s}", f"elbow_{s}", 0.036, 0.030, "upper arm"),
            _Part(f"elbow_{s}", f"wrist_{s}", 0.030, 0.023, "forearm"),
            _Part(f"wrist_{s}", f"hand_{s}", 0.025, 0.022, "skin"),
            _Part(f"hip_{s}", f"knee_{s}", 0.056, 0.041, "thigh"),
            _Part(f"knee_{s}", f"ankle_{s}", 0.041, 0.028, "shin"),
            _Part(f"ankle_{s}", f"toe_{s}", 0.030, 0.022, "shoe"),
            _Part(f"eye_{s}", f"lid_{s}", 0.0065, 0.0065, "eye"),
        ]
    if person.skirt:
        parts.append(_Part("pelvis", "hem", 0.085, 0.105, "hips"))
    for i, (_, _, radius) in enumerate(_BANDS):
        striped = person.pattern == "striped" and i % 2 == 0
        halved = person.pattern == "two-coloured" and i < 3
        colour = "hips" if i == 0 else "second" if striped or halved else "shirt"
        parts.append(_Part(f"band{i}_l", f"band{i}_r", radius, radius, colour))
    parts.append(_Part("neck", "chin", 0.032, 0.032, "skin"))
    parts.append(_Part("face", "brow", 0.052, 0.056, "skin"))
    if person.hair_style != "bald":
        parts.append(_Part("crown", "nape", 0.062, 0.052, "hair"))
    if person.hair_style == "long":
        parts.append(_Part("nape", "mane", 0.056, 0.048, "hair"))
    return parts


def _skeleton(person: Person, track: Track) -> dict[str, Array]:
    """Joint positions (T, 3) in metres, set on the ground: the lowest point of the body touches it."""
    angle = {name: track.angles[:, i] for name, i in _INDEX.items()}
    wide = person.shoulders * person.build
    pelvis_turn = _turn("z", track.yaw) @ _turn("y", angle["lean"]) @ _turn("x", angle["tilt"])
    trunk_turn = pelvis_turn @ _turn("z", angle["twist"]) @ _turn("y", angle["bend"]) @ _turn("x", angle["sway"])
    head_turn = trunk_turn @ _turn("y", angle["nod"]) @ _turn("z", angle["turn"])

    at = {"pelvis": np.zeros((len(track.yaw), 3))}
    for i, (up, half, _) in enumerate(_BANDS):
        turn = pelvis_turn if i == 0 else trunk_turn
        for s, sign in (("l", 1), ("r", -1)):
            at[f"band{i}_{s}"] = _point(turn, 0, sign * half * 0.62 * wide, 0.285 * up)
    at["neck"] = _point(trunk_turn, 0, 0, 0.29)
    for name, offset in {
        "chin": (0.008, 0, 0.055),
        "face": (0.014, 0, 0.085),
        "brow": (0.010, 0, 0.112),
        "crown": (-0.006, 0, 0.124),
        "nape": (-0.022, 0, 0.095),
        "mane": (-0.035, 0, 0.015),
        "eye_l": (0.064, 0.022, 0.092),
        "lid_l": (0.064, 0.022, 0.100),
        "eye_r": (0.064, -0.022, 0.092),
        "lid_r": (0.064, -0.022, 0.100),
    }.items():
        at[name] = at["neck"] + _point(head_turn, *offset)
    for s, sign in (("l", 1), ("r", -1)):
        arm = trunk_turn @ _turn("y", -angle[f"shoulder_{s}"]) @ _turn("x", sign * angle[f"spread_{s}"])
        fore = arm @ _turn("z", -sign * angle[f"roll_{s}"]) @ _turn("y", -angle[f"elbow_{s}"])
        thigh = pelvis_turn @ _turn("y", -angle[f"hip_{s}"]) @ _turn("x", sign * angle[f"split_{s}"])
        shin = thigh @ _turn("y", angle[f"knee_{s}"])
        at[f"shoulder_{s}"] = _point(trunk_turn, 0, sign * 0.108 * wide, 0.262)
        at[f"elbow_{s}"] = at[f"shoulder_{s}"] + _point(arm, 0, 0, -0.168)
        at[f"wrist_{s}"] = at[f"elbow_{s}"] + _point(fore, 0, 0, -0.142)
        at[f"hand_{s}"] = at[f"wrist_{s}"] + _point(fore, 0, 0, -0.045)
        at[f"hip_{s}"] = _point(pelvis_turn, 0, sign * 0.050 * person.build, -0.02)
        at[f"knee_{s}"] = at[f"hip_{s}"] + _point(thigh, 0, 0, -0.240)
        at[f"ankle_{s}"] = at[f"knee_{s}"] + _point(shin, 0, 0, -0.232)
        at[f"toe_{s}"] = at[f"ankle_{s}"] + _point(shin, 0.085, 0, -0.012)
    at["hem"] = 0.35 * at["pelvis"] + 0.325 * (at["knee_l"] + at["knee_r"])

    spread = np.stack(list(at.values()), 1) * person.height
    root = np.zeros((len(track.yaw), 3))
    root[:, :2] = track.ground
    if track.rooted:
        root[:, :2] -= person.height * (at["ankle_l"] + at["ankle_r"])[:, :2] / 2
    root[:, 2] = 0.03 * person.height - spread[..., 2].min(1)
    joints = {name: spread[:, i] + root for i, name in enumerate(at)}
    if track.parcel:
        side, taken = track.parcel
        joints["handle"] = joints[f"hand_{side}"].copy()
        joints["handle"][:taken] = joints["handle"][taken]
        joints["handle"][:taken, 2] = 0.3
        joints["parcel"] = joints["handle"] - (0, 0, 0.18)
    return joints


def _point(turn: Array, x: float, y: float, z: float) -> Array:
    """The fixed offset (x, y, z) of a joint, turned as its limb is in every frame (T, 3)."""
    return turn @ np.array((x, y, z))


def _turn(axis: str, angle: Array) -> Array:
    """Rotation matrices (T, 3, 3) about one axis."""
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.zeros((len(angle), 3, 3))
    matrix[:] = np.eye(3)
    matrix[:, i, i] = matrix[:, j, j] = np.cos(angle)
    matrix[:, j, i] = np.sin(angle)
    matrix[:, i, j] = -matrix[:, j, i]
    return matrix


def _capsules(a: Array, b: Array, ra: Array, rb: Array, arc: int = 8) -> Array:
    """Outlines (..., 2 * arc, 2) around two circles each: the shape of a limb that tapers from a to b."""
    along = b - a
    length = np.maximum(np.hypot(along[..., 0], along[..., 1]), 1e-6)
    heading = np.arctan2(along[..., 1], along[..., 0])[..., None]
    tangent = np.arccos(np.clip((ra - rb) / length, -1, 1))[..., None]
    u = np.linspace(0, 1, arc)
    angle_a = heading + tangent + u * (2 * np.pi - 2 * tangent)
    angle_b = heading - tangent + u * 2 * tangent
    circle_a = a[..., None, :] + ra[..., None, None] * np.stack([np.cos(angle_a), np.sin(angle_a)], -1)
    circle_b = b[..., None, :] + rb[..., None, None] * np.stack([np.cos(angle_b), np.sin(angle_b)], -1)
    return np.concatenate([circle_a, circle_b], -2)


def _shadow(joints: dict[str, Array], camera: Camera) -> Array:
    """Centre and half axes (T, 4), in the picture, of the shadow that light from above throws."""
    body = np.stack([joints[n] for n in ("neck", "pelvis", "knee_l", "knee_r", "ankle_l", "ankle_r", "brow")], 1)
    low, high = body.min(1) - 0.2, body.max(1) + 0.2
    centre = (low + high) / 2
    centre[:, 2] = 0
    middle, scale = camera.project(centre)
    half = (high - low)[:, :2] / 2 * scale[:, None]
    half[:, 1] *= camera.up / centre[:, 1]
    return np.concatenate([middle, half], 1)
