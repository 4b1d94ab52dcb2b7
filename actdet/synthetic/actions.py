"""The two actions that the detector looks for, fight and collapse, as motions (see `motions`)."""

from __future__ import annotations

import numpy as np

from actdet.synthetic.figures import SIDES, Array, Track, overlay
from actdet.synthetic.motions import (
    LYING,
    STRIDE,
    Act,
    Rng,
    along,
    approach,
    face_each_other,
    fall_heading,
    lie,
    pulse,
    ramp,
    sideways_heading,
    still,
    stride,
    wobble,
)

# The longest time from drawing back for a blow until the arm or leg is down again, in seconds.
_BLOW = 0.6

# How long after the impact of a fall the body has come to rest, in seconds.
REBOUND = 0.4


def collapse(t: Array, rng: Rng, room: float) -> Act:
    """Walk or stand, stagger, and fall fast, to stay down for at least the last 35 % of the clip."""
    drop = rng.uniform(0.5, 0.8)
    return topple(t, rng, room, drop, rng.uniform(0.42, 0.63) * t[-1])


def topple(t: Array, rng: Rng, room: float, drop: float, landed: float) -> Act:
    """Walk or stand, stagger, and fall fast, to stay down.

    Args:
        t: (T,) times of the frames, in seconds.
        rng: Where the motion comes from.
        room: How much room there is to walk, in meters.
        drop: How long the fall takes, in seconds. The action begins up to 0.8 seconds before it, with the stagger.
        landed: When the person hits the ground, in seconds. The action ends when the body lies still, `REBOUND` later.
    """
    fall = landed - drop
    stagger = fall - rng.uniform(0.3, 0.8)
    way = str(rng.choice(LYING))
    yaw = fall_heading(way, rng)

    angles = still(t, rng)

    # How far the person walks before the fall, at most 0.6 of the room.
    slowing = 1 - ramp(t, stagger, fall - stagger + 0.15)
    pace = slowing * (rng.uniform(0.7, 1.3) if rng.random() < 0.6 else 0)
    traveled = np.cumsum(pace) * (t[1] - t[0])
    traveled *= min(1, 0.6 * room / max(traveled[-1], 1e-6))
    stride(angles, traveled + rng.uniform(0, STRIDE), slowing if pace[0] > 0 else 0.0)

    _stagger(angles, t, rng, stagger, fall)
    _fall(angles, t, rng, way, fall, drop)
    track = Track(angles, traveled[:, None] * along(yaw), np.full(len(t), yaw), rooted=True)
    return Act([track], action=(stagger, landed + REBOUND))


def _stagger(angles: Array, t: Array, rng: Rng, start: float, end: float) -> None:
    """Sway, with bent knees."""
    weight = ramp(t, start, 0.25)
    overlay(angles, weight, tilt=rng.uniform(5, 12) * wobble(t, rng, 1.3), lean=8 * wobble(t, rng, 1.1))
    overlay(angles, weight, bend=rng.uniform(5, 28), nod=rng.uniform(-10, 30), knee=rng.uniform(12, 30), hip=12)

    # A hand may go to the head or the chest.
    if rng.random() < 0.6:
        raised = ramp(t, start, end - start)
        overlay(angles, raised, rng.choice(SIDES), shoulder=rng.uniform(45, 85), elbow=130, roll=50)


def _fall(angles: Array, t: Array, rng: Rng, way: str, start: float, length: float) -> None:
    """Topple with arms thrown out, perhaps with the knees giving way first, and hit the ground at full speed."""
    if rng.random() < 0.3 and way != "supine":
        overlay(angles, ramp(t, start, length * 0.6), hip=20, knee=105, lean=8, bend=25, nod=30)
        tipping = np.clip((t - start - 0.35 * length) / (0.65 * length), 0, 1) ** 2
    else:
        tipping = np.clip((t - start) / length, 0, 1) ** 2.2

    flail = pulse(t, start, length * 0.5, length * 0.2, length * 0.4)
    for s in SIDES:
        overlay(angles, flail, s, shoulder=rng.uniform(60, 130), elbow=rng.uniform(10, 60))
        overlay(angles, flail, s, spread=rng.uniform(10, 60))

    after = np.maximum(t - start - length, 0)
    rebound = 0.06 * np.exp(-after / 0.12) * np.sin(np.pi * after / 0.16)
    lie(angles, tipping - rebound, ramp(t, start + 0.2 * length, length), way, rng)


def fight(t: Array, rng: Rng, room: float) -> Act:
    """Two people close in, then strike and wrestle in turns until the end."""
    return brawl(t, rng, room, rng.uniform(0, 0.22) * t[-1], np.inf)


def brawl(t: Array, rng: Rng, room: float, contact: float, end: float) -> Act:
    """Two people close in, strike and wrestle in turns, and step back from each other.

    Args:
        t: (T,) times of the frames, in seconds.
        rng: Where the motion comes from.
        room: How far apart they may be, in meters.
        contact: When the first of them draws back for the first blow, in seconds: here the action begins.
        end: When they begin to part, in seconds, and the action is over; infinite if they do not.
    """
    apart = min(rng.uniform(0.8, 1.1) + 2.6 * contact, room)
    reach = rng.uniform(0.58, 0.75)
    # They let go of each other before they part, and drop their fists while they do.
    grip = _grips(t, rng, contact) * (1 - ramp(t, end - 0.3, 0.3))
    gap = apart + (reach - apart) * ramp(t, -0.3 * contact, 1.3 * contact + 0.1)
    gap = gap + grip * (rng.uniform(0.34, 0.46) - gap)
    if end < t[-1]:
        gap = gap + ramp(t, end, 0.9) * (min(rng.uniform(1.1, 1.7), room) - gap)
    vigor = ramp(t, contact - 0.2, 0.4) * (1 - ramp(t, end, 0.6))

    both = [still(t, rng) for _ in range(2)]
    for angles in both:
        approach(angles, t, gap, rng)
        _guard(angles, t, rng, vigor)
        _wrestle(angles, t, rng, grip)

    # A blow pushes back the one who is hit, which moves both along their axis.
    shift = np.zeros(len(t))
    start = contact
    while start < min(t[-1], end - _BLOW):
        who = int(rng.integers(2))
        # Arms that hold on have little strength left to strike.
        force = 1 - 0.6 * np.interp(start, t, grip)
        hit = _strike(both[who], t, rng, start, force)
        pushed = _recoil(both[1 - who], t, rng, hit, force)
        gap = gap + 0.6 * pushed
        shift += (1 if who == 0 else -1) * 0.3 * pushed
        start += rng.uniform(0.22, 0.5) / force

    angle = sideways_heading(rng, 0.5) + vigor * (0.18 + 0.4 * grip) * wobble(t, rng, 0.8)
    roam = np.stack([wobble(t, rng, 0.8), 0.6 * wobble(t, rng, 0.7)], 1)
    center = (vigor * (0.14 + 0.14 * grip))[:, None] * roam + shift[:, None] * along(angle)
    return Act(face_each_other(center, gap, angle, both), action=(contact, end))


def _grips(t: Array, rng: Rng, contact: float) -> Array:
    """Return weights (T,) of holding each other, which alternates with free blows."""
    grip = np.zeros(len(t))
    start = contact + rng.uniform(0.2, 1.6)
    while start < t[-1]:
        hold = rng.uniform(0.5, 1.6)
        grip = np.maximum(grip, pulse(t, start, 0.25, hold, 0.25))
        start += hold + rng.uniform(0.7, 1.6)
    return grip


def _guard(angles: Array, t: Array, rng: Rng, weight: Array) -> None:
    """Stand with fists up and knees bent, always on the move."""
    lead = rng.choice([-1, 1])
    step = 14 * wobble(t, rng, rng.uniform(1.5, 2.2))
    overlay(angles, weight, bend=rng.uniform(8, 20) + 6 * wobble(t, rng, 1.3), turn=0)
    overlay(angles, weight, sway=8 * wobble(t, rng, 1.2), twist=10 * wobble(t, rng, 1.4))
    overlay(angles, weight, split=rng.uniform(6, 12), spread=rng.uniform(10, 25), roll=rng.uniform(10, 30))
    for s, sign in zip(SIDES, (1, -1), strict=True):
        overlay(angles, weight, s, hip=15 + sign * (14 * lead + step), knee=25 + sign * (step - 6 * lead))
        raised = rng.uniform(25, 60) + 14 * wobble(t, rng, 1.6)
        overlay(angles, weight, s, shoulder=raised, elbow=rng.uniform(85, 125))


def _wrestle(angles: Array, t: Array, rng: Rng, weight: Array) -> None:
    """Lock the arms on the other person, heave with the body, and stumble for a foothold."""
    stumble = 26 * wobble(t, rng, rng.uniform(1.3, 2.0))
    overlay(angles, weight, lean=rng.uniform(6, 16), bend=rng.uniform(12, 30) + 12 * wobble(t, rng, 1.3))
    overlay(
        angles,
        weight,
        sway=16 * wobble(t, rng, 1.1),
        twist=24 * wobble(t, rng, 1.2),
        nod=rng.uniform(-10, 20),
    )
    for s, sign in zip(SIDES, (1, -1), strict=True):
        overlay(angles, weight, s, hip=14 + sign * stumble, knee=32 + sign * stumble)
        pull = 18 * wobble(t, rng, 1.5)
        overlay(angles, weight, s, shoulder=rng.uniform(60, 100) + pull, elbow=rng.uniform(25, 70) - pull)
        overlay(angles, weight, s, roll=rng.uniform(0, 40), spread=rng.uniform(8, 28))


def _strike(angles: Array, t: Array, rng: Rng, start: float, force: float) -> float:
    """Wind up for a blow and hit; return when it lands, in seconds."""
    back = rng.uniform(0.10, 0.17)
    out = rng.uniform(0.08, 0.12)
    wind = force * pulse(t, start, back, 0, out)
    blow = force * pulse(t, start + back, out, rng.uniform(0.04, 0.09), 0.2)
    s = str(rng.choice(SIDES))
    twist = 32 if s == "r" else -32
    kind = rng.choice(["punch", "punch", "hook", "swing", "kick", "shove"])
    if kind == "punch":
        overlay(angles, wind, s, shoulder=-20, elbow=125, twist=-twist)
        overlay(angles, blow, s, shoulder=rng.uniform(80, 100), elbow=4, twist=twist, bend=18)
    elif kind == "hook":
        overlay(angles, wind, s, shoulder=40, spread=75, elbow=70, twist=-twist)
        overlay(angles, blow, s, shoulder=88, spread=0, elbow=40, twist=1.4 * twist)
    elif kind == "swing":
        overlay(angles, wind, s, shoulder=165, elbow=70, bend=-8)
        overlay(angles, blow, s, shoulder=70, elbow=8, bend=30, twist=twist)
    elif kind == "kick":
        overlay(angles, wind, s, hip=60, knee=110)
        overlay(angles, blow, s, hip=rng.uniform(60, 100), knee=8, lean=-16, bend=8)
    else:
        overlay(angles, wind, shoulder=30, elbow=125)
        overlay(angles, blow, shoulder=88, elbow=6, roll=10, lean=14, bend=16)
    return start + back + out


def _recoil(angles: Array, t: Array, rng: Rng, hit: float, force: float) -> Array:
    """Give way to a blow; return how far over time, (T,) in meters."""
    jolt = force * pulse(t, hit - 0.04, 0.1, 0.05, 0.3)
    overlay(
        angles,
        jolt,
        bend=rng.uniform(-25, -5),
        lean=-8,
        nod=rng.uniform(-30, -10),
        twist=rng.uniform(-30, 30),
    )
    overlay(angles, 0.6 * jolt, spread=rng.uniform(20, 55), elbow=60)
    return rng.uniform(0.08, 0.3) * force * pulse(t, hit, 0.12, 0.05, 0.5)
