"""How people come into a scene of the rendered data set and leave it: on foot, before and after what they do there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from actdet.synthetic.figures import Array, Track
from actdet.synthetic.motions import STRIDE, Rng, along, ramp, stride


def walk_in(track: Track, t: Array, until: float, heading: float, rng: Rng) -> Track:
    """Return the track of somebody who first walks to where the track begins.

    Args:
        track: A person who stays in place until then.
        t: (T,) times of the frames, in seconds.
        until: When the person has arrived, in seconds.
        heading: Direction of the walk, in radians.
        rng: Where the pace comes from.
    """
    pace = rng.uniform(0.9, 1.4) * (1 - ramp(t, until - 0.5, 0.5))
    ahead = np.cumsum(pace[::-1])[::-1] * (t[1] - t[0])
    return _walk(track, -ahead, heading, 1 - ramp(t, until - 0.5, 0.5), 1 - ramp(t, until - 0.6, 0.7), rng)


def walk_out(track: Track, t: Array, start: float, heading: float, rng: Rng) -> Track:
    """Return the track of somebody who turns and walks away in the end.

    Args:
        track: A person who stays in place from then on.
        t: (T,) times of the frames, in seconds.
        start: When the person begins to walk, in seconds.
        heading: Direction of the walk, in radians.
        rng: Where the pace comes from.
    """
    pace = rng.uniform(0.9, 1.4) * ramp(t, start, 0.5)
    behind = np.cumsum(pace) * (t[1] - t[0])
    return _walk(track, behind, heading, ramp(t, start, 0.4), ramp(t, start - 0.3, 0.7), rng)


def _walk(track: Track, traveled: Array, heading: float, walking: Array, turned: Array, rng: Rng) -> Track:
    """Return the track with a walk in it.

    Args:
        track: A person who stays in place during the walk.
        traveled: (T,) meters along the heading from where the track has the person.
        heading: In radians.
        walking: (T,) weight of walking in the motion.
        turned: (T,) how far the person has turned to the heading, in [0, 1].
        rng: Where the phase of the steps comes from.
    """
    angles = track.angles.copy()
    stride(angles, traveled + rng.uniform(0, STRIDE), walking)

    # The way that the person turns must not flip when the track's own heading wavers, so it is chosen once.
    reference = track.yaw[np.argmax(np.abs(np.diff(turned)))]
    target = reference + (heading - reference + np.pi) % (2 * np.pi) - np.pi
    yaw = track.yaw + turned * (target - track.yaw)
    return replace(track, angles=angles, ground=track.ground + traveled[:, None] * along(heading), yaw=yaw)
