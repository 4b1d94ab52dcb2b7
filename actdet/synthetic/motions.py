"""How people move in the rendered data set: the building blocks of motions, and all everyday actions.

A motion is a function of time that returns an `Act`: one `Track` per actor, and the things that they need. Paths are in
meters around the middle of the stage: x to the right, y away from the camera. In all functions `t` (T,) are the times
of the frames in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from actdet.synthetic.figures import SIDES, Array, Track, overlay, rest_angles

Rng = np.random.Generator

# The length of two steps, in meters.
STRIDE = 1.42

# Lying on the belly, on the back, on the left or on the right side.
LYING = ("prone", "supine", "left", "right")


@dataclass(frozen=True)
class Prop:
    """A thing on the ground."""

    kind: str
    x: float
    """Of its middle."""
    y: float
    """Of its middle."""
    facing: int = 0
    """Where a seat faces: -1 left, 1 right, 0 the camera."""


@dataclass(frozen=True)
class Act:
    """What the actors do, and the things around them that they need."""

    tracks: list[Track]
    props: list[Prop] = field(default_factory=list)
    action: tuple[float, float] | None = None
    """When the action, if it is one, begins and ends, in the seconds of its motion."""


# A motion takes the times, random numbers, and how much room there is to walk, in meters.
Motion = Callable[[Array, Rng, float], Act]


# Building blocks: weights in [0, 1] over time, headings, and the moves that several actions share.


def ramp(t: Array, start: float, length: float) -> Array:
    """Return weights that are 0 before `start`, 1 after `start + length`, and rise smoothly in between."""
    u = np.clip((t - start) / max(length, 1e-3), 0, 1)
    return u * u * (3 - 2 * u)


def pulse(t: Array, start: float, rise: float, hold: float, release: float) -> Array:
    """Return weights that rise from 0 to 1, hold, and fall back to 0, for the given seconds each."""
    return ramp(t, start, rise) * (1 - ramp(t, start + rise + hold, release))


def wobble(t: Array, rng: Rng, hertz: float) -> Array:
    """Return an irregular swing within [-1, 1] at about the given frequency."""
    slow = hertz * rng.uniform(0.8, 1.0)
    fast = hertz * rng.uniform(1.25, 1.6)
    a, b = rng.uniform(0, 2 * np.pi, 2)
    return 0.65 * np.sin(2 * np.pi * slow * t + a) + 0.35 * np.sin(2 * np.pi * fast * t + b)


def along(yaw: Array | float) -> Array:
    """Return unit steps (..., 2) on the ground in the direction of the heading."""
    return np.stack([np.cos(yaw), np.sin(yaw)], -1)


def sideways_heading(rng: Rng, slant: float) -> float:
    """Return a heading to the left or right of the picture, at most `slant` radians off."""
    return rng.choice([0.0, np.pi]) + rng.uniform(-slant, slant)


def fall_heading(way: str, rng: Rng) -> float:
    """Return a heading from which a fall of this way, one of `LYING`, ends across the picture, in full view."""
    return sideways_heading(rng, 0.65) + {"left": -np.pi / 2, "right": np.pi / 2}.get(way, 0.0)


def still(t: Array, rng: Rng) -> Array:
    """Return the angles of a person at rest, in a posture of their own, who moves a little."""
    angles = rest_angles(len(t))
    overlay(angles, 1, bend=rng.uniform(-2, 7) + 1.5 * wobble(t, rng, 0.4), sway=2 * wobble(t, rng, 0.3))
    overlay(angles, 1, turn=rng.uniform(-30, 30) + 12 * wobble(t, rng, 0.4), nod=rng.uniform(-5, 12))
    for s in SIDES:
        swing = rng.uniform(-4, 14) + 3 * wobble(t, rng, 0.4)
        overlay(angles, 1, s, shoulder=swing, elbow=rng.uniform(8, 35), spread=rng.uniform(5, 14))
    return angles


def stride(angles: Array, traveled: Array, weight: Array | float) -> None:
    """Set the angles of walking: legs and arms swing with the distance traveled, in meters."""
    phase = 2 * np.pi * traveled / STRIDE
    overlay(angles, weight, bend=5, twist=6 * np.sin(phase))
    for s, p in zip(SIDES, (phase, phase + np.pi), strict=True):
        overlay(angles, weight, s, hip=26 * np.sin(p) + 3, knee=8 + 48 * np.clip(np.cos(p), 0, 1) ** 1.3)
        overlay(angles, weight, s, shoulder=3 - 24 * np.sin(p), elbow=22 - 10 * np.sin(p))


def lie(angles: Array, trunk: Array, limbs: Array, way: str, rng: Rng) -> None:
    """Set the angles of lying down.

    Args:
        angles: (T, J) angles of the joints.
        trunk: (T,) how far the trunk has come, in [0, 1].
        limbs: (T,) how far the limbs have come, in [0, 1].
        way: One of `LYING`.
        rng: Where the posture comes from.
    """
    overlay(angles, limbs, turn=rng.uniform(-40, 40), nod=rng.uniform(-5, 10), twist=0)
    if way in ("prone", "supine"):
        lean = rng.uniform(86, 89) * (1 if way == "prone" else -1)
        overlay(angles, trunk, lean=lean, tilt=rng.uniform(-8, 8), bend=0, sway=rng.uniform(-12, 12))
        # The arms lie flat on the ground, beside the body or beyond the head, and a knee may stand up.
        for s in SIDES:
            overlay(angles, limbs, s, shoulder=rng.choice([0.0, 172.0]), spread=rng.uniform(8, 75))
            overlay(angles, limbs, s, elbow=rng.uniform(5, 80), roll=rng.choice([-90.0, 90.0]))
            raised = rng.uniform(0, 45) if way == "supine" and rng.random() < 0.6 else 0
            overlay(angles, limbs, s, hip=raised, knee=2 * raised + rng.uniform(0, 12))
            overlay(angles, limbs, s, split=rng.uniform(3, 22))
    else:
        tilt = rng.uniform(84, 89) * (1 if way == "right" else -1)
        overlay(angles, trunk, tilt=tilt, lean=rng.uniform(-8, 8), bend=rng.uniform(-5, 30), sway=0)
        # The limbs are somewhere in front of the body, which is now level with the ground.
        for s in SIDES:
            overlay(angles, limbs, s, shoulder=rng.uniform(0, 150), elbow=rng.uniform(5, 90), spread=3, roll=0)
            overlay(angles, limbs, s, hip=rng.uniform(-5, 70), knee=rng.uniform(0, 95), split=2)


# One person.


def stand(t: Array, rng: Rng) -> Track:
    """Stand around, facing anywhere."""
    yaw = rng.uniform(-np.pi, np.pi) + 0.15 * wobble(t, rng, 0.2)
    return Track(still(t, rng), np.zeros((len(t), 2)), yaw, rooted=True)


def wave(t: Array, rng: Rng) -> Track:
    """Stand and wave an arm."""
    track = stand(t, rng)
    s = rng.choice(SIDES)
    raised = ramp(t, rng.uniform(-0.5, 0.4) * t[-1], 0.6)
    forearm = 45 + 32 * np.sin(2 * np.pi * rng.uniform(1, 2) * t)
    overlay(track.angles, raised, s, shoulder=rng.uniform(120, 170), spread=20, elbow=forearm)
    return track


def stroll(t: Array, rng: Rng) -> Track:
    """Walk, perhaps with a bag."""
    track = _walker(t, rng, sideways_heading(rng, 0.3), t[-1] * rng.uniform(0.6, 1.4))
    track.parcel = (rng.choice(SIDES), 0) if rng.random() < 0.4 else None
    return track


def seated(t: Array, rng: Rng, facing: int) -> Track:
    """Sit all the time, facing as `Prop.facing` says."""
    angles = still(t, rng)
    _sit(angles, 1, rng)
    yaw = np.full(len(t), _seat_heading(facing) + rng.uniform(-0.2, 0.2))
    return Track(angles, np.zeros((len(t), 2)), yaw)


def _walker(t: Array, rng: Rng, yaw: float, way: float) -> Track:
    """Walk `way` meters with the heading `yaw`, through the middle of the stage."""
    traveled = way * (t / t[-1] - 0.5)
    angles = still(t, rng)
    stride(angles, traveled + rng.uniform(0, STRIDE), 1)
    return Track(angles, traveled[:, None] * along(yaw), np.full(len(t), yaw))


def _seat_heading(facing: int) -> float:
    return {-1: np.pi, 0: -np.pi / 2, 1: 0.0}[facing]


def _sit(angles: Array, weight: Array | float, rng: Rng) -> None:
    overlay(angles, weight, hip=rng.uniform(80, 88), knee=rng.uniform(80, 92), split=rng.uniform(5, 14))
    overlay(angles, weight, shoulder=rng.uniform(25, 40), elbow=rng.uniform(35, 60), roll=25)


def _walk_or_stand(t: Array, rng: Rng, room: float) -> Act:
    if rng.random() < 0.25:
        return Act([stand(t, rng)])
    return Act([_walker(t, rng, sideways_heading(rng, 0.5), min(room, t[-1] * rng.uniform(0.7, 1.5)))])


def _sit_down(t: Array, rng: Rng, room: float) -> Act:
    """Sit down on a seat; if there is time before, walk up to it and turn around."""
    facing = int(rng.integers(-1, 2))
    heading = _seat_heading(facing)
    length = rng.uniform(0.8, 1.4)
    start = rng.uniform(0.15, 0.55) * max(t[-1] - length, 0.3)

    angles = still(t, rng)
    yaw = np.full(len(t), heading + rng.uniform(-0.2, 0.2))
    spot = np.zeros((len(t), 2))
    way = rng.uniform(0.3, min(0.8, max(room / 2, 0.3)))
    if rng.random() < 0.6 and start > 0.9:
        before = 1 - ramp(t, start - 0.75, 0.6)
        spot = before[:, None] * way * along(heading + rng.uniform(-0.8, 0.8))
        yaw = yaw + np.pi * before * rng.choice([-1, 1])
        stride(angles, -way * before, pulse(t, start - 0.85, 0.15, 0.4, 0.2))

    _sit(angles, ramp(t, start, length), rng)
    overlay(angles, pulse(t, start, length * 0.5, 0, length * 0.6), bend=rng.uniform(25, 45))
    x, y = (-0.42 * along(heading)).tolist()
    seat = Prop("chair" if rng.random() < 0.6 else "bench", x, y, facing)
    return Act([Track(angles, spot, yaw, rooted=True)], [seat])


def _pick_up(t: Array, rng: Rng, room: float) -> Act:
    """Bend or squat for a parcel on the ground, take it and rise again."""
    length = rng.uniform(1.4, 2.2)
    start = rng.uniform(0.1, 0.7) * max(t[-1] - length, 0.3)
    down = pulse(t, start, length * 0.42, length * 0.12, length * 0.42)

    angles = still(t, rng)
    squat = rng.uniform(0, 1)
    s = str(rng.choice(SIDES))
    overlay(angles, down, bend=70 - 35 * squat, lean=12, hip=50 + 55 * squat, knee=35 + 85 * squat, nod=15)
    overlay(angles, down, s, shoulder=75, elbow=5)
    overlay(angles, ramp(t, start + length * 0.55, 0.5), s, elbow=rng.uniform(40, 100))
    taken = min(int(np.searchsorted(t, start + length * 0.5)), len(t) - 1)
    yaw = np.full(len(t), sideways_heading(rng, 0.9))
    return Act([Track(angles, np.zeros((len(t), 2)), yaw, rooted=True, parcel=(s, taken))])


def _lie_down(t: Array, rng: Rng, room: float) -> Act:
    """Kneel, go on all fours or sit back, and lie down: slowly, over more than half of the clip."""
    total = rng.uniform(0.58, 0.75) * t[-1]
    start = rng.uniform(0.04, 0.95) * (t[-1] * 0.9 - total)
    way = str(rng.choice(LYING))

    angles = still(t, rng)
    overlay(angles, ramp(t, start, 0.34 * total), hip=5, knee=92, bend=15, lean=-3)
    lower = ramp(t, start + 0.3 * total, 0.36 * total)
    if way == "supine":
        overlay(angles, lower, lean=-22, hip=92, knee=62, bend=12, shoulder=-25, elbow=10)
    elif way == "prone":
        overlay(angles, lower, lean=74, hip=76, knee=90, bend=6, shoulder=78, elbow=8, nod=-20)
    else:
        tilt = 22 if way == "right" else -22
        overlay(angles, lower, tilt=tilt, hip=72, knee=148, bend=14, spread=40, elbow=15)
    rest = ramp(t, start + 0.62 * total, 0.38 * total)
    lie(angles, rest, rest, way, rng)

    yaw = np.full(len(t), fall_heading(way, rng))
    mat = [Prop("mat", rng.uniform(-0.4, 0.4), rng.uniform(-0.1, 0.2))] if rng.random() < 0.5 else []
    return Act([Track(angles, np.zeros((len(t), 2)), yaw, rooted=True)], mat)


# Two people.


def face_each_other(center: Array, gap: Array, angle: Array, both: list[Array]) -> list[Track]:
    """Return the tracks of two people who face each other.

    Args:
        center: (T, 2) the point halfway between them.
        gap: (T,) how far they are apart, in meters.
        angle: (T,) heading of the first of them.
        both: The angles of their joints, (T, J) each.
    """
    reach = gap[:, None] / 2 * along(angle)
    return [Track(both[0], center - reach, angle), Track(both[1], center + reach, angle + np.pi)]


def approach(angles: Array, t: Array, gap: Array, rng: Rng) -> None:
    """Set the angles of walking while the gap closes: each person goes half of the way."""
    closing = np.abs(np.gradient(gap, t)) / 2
    stride(angles, -gap / 2 + rng.uniform(0, STRIDE), np.clip(closing / 0.5, 0, 1))


def _pass_by(t: Array, rng: Rng, room: float) -> Act:
    """Two people walk past each other."""
    heading = sideways_heading(rng, 0.25)
    lane = rng.uniform(0.25, 0.55)
    tracks = []
    for turn, side in ((0.0, 1), (np.pi, -1)):
        track = _walker(t, rng, heading + turn, min(room, t[-1] * rng.uniform(0.7, 1.5)))
        track.ground += side * lane / 2 * along(heading + np.pi / 2) + rng.uniform(-0.3, 0.3) * along(heading)
        tracks.append(track)
    return Act(tracks)


def _hug(t: Array, rng: Rng, room: float) -> Act:
    """Meet, put their arms around each other, and stay like this."""
    meet = rng.uniform(0.2, 0.45) * t[-1]
    apart = min(rng.uniform(0.7, 2.2), 0.36 + 2.4 * meet, room)
    gap = apart + (rng.uniform(0.28, 0.36) - apart) * ramp(t, -0.2 * meet, 1.2 * meet)

    both = [still(t, rng) for _ in range(2)]
    for angles in both:
        approach(angles, t, gap, rng)
        hold = ramp(t, meet - rng.uniform(0.3, 0.5), rng.uniform(0.6, 0.9))
        overlay(angles, hold, turn=0, nod=rng.uniform(0, 20), bend=rng.uniform(4, 12))
        overlay(angles, hold, sway=3 * wobble(t, rng, 0.4), spread=22)
        for s in SIDES:
            forearm = rng.uniform(55, 80) + rng.uniform(0, 9) * wobble(t, rng, 1.5)
            overlay(angles, hold, s, shoulder=rng.uniform(45, 85), elbow=forearm, roll=rng.uniform(45, 70))

    angle = sideways_heading(rng, 0.6) + 0.08 * wobble(t, rng, 0.25)
    return Act(face_each_other(np.zeros((len(t), 2)), gap, angle, both))


def _talk(t: Array, rng: Rng, room: float) -> Act:
    """Stand and talk with their hands."""
    both = [still(t, rng) for _ in range(2)]
    for angles in both:
        overlay(angles, 1, turn=0, nod=6 * wobble(t, rng, 1.0), split=rng.uniform(4, 12))
        start = rng.uniform(-0.3, 0.8)
        while start < t[-1]:
            hold = rng.uniform(0.2, 0.9)
            s = rng.choice(SIDES)
            raised = pulse(t, start, rng.uniform(0.3, 0.5), hold, rng.uniform(0.3, 0.6))
            forearm = rng.uniform(60, 115) + 15 * wobble(t, rng, 1.4)
            overlay(angles, raised, s, shoulder=rng.uniform(10, 50), elbow=forearm, spread=rng.uniform(5, 35))
            start += hold + rng.uniform(0.4, 1.4)

    center = 0.03 * np.stack([wobble(t, rng, 0.3), wobble(t, rng, 0.3)], 1)
    gap = np.full(len(t), min(rng.uniform(0.7, 1.3), room))
    angle = sideways_heading(rng, 0.7) + 0.1 * wobble(t, rng, 0.2)
    return Act(face_each_other(center, gap, angle, both))


# All everyday actions, by the name that they have in the names of clips.
EVERYDAY: dict[str, Motion] = {
    "pass": _pass_by,
    "hug": _hug,
    "talk": _talk,
    "sit": _sit_down,
    "pickup": _pick_up,
    "lie": _lie_down,
    "walk": _walk_or_stand,
}
