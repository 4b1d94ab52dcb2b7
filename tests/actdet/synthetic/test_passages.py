"""People walk in and out at a natural pace, and in between they do what they would have done anyway."""

from __future__ import annotations

import numpy as np
import pytest

from actdet.synthetic.figures import Track
from actdet.synthetic.motions import along, stand
from actdet.synthetic.passages import walk_in, walk_out

T = np.arange(160) / 16


def unit(yaw: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(yaw), np.sin(yaw)], -1)


@pytest.mark.parametrize("heading", [0.0, 2.0, 3 * np.pi, -1.5])
@pytest.mark.parametrize("seed", range(3))
def test_one_walks_before_arriving_or_after_leaving(heading: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    track = stand(T, rng)
    for walk, walking, resting in (
        (walk_in, slice(0, 96), slice(114, None)),
        (walk_out, slice(128, None), slice(0, 104)),
    ):
        when = 7.0
        moved: Track = walk(track, T, when, heading, rng)
        np.testing.assert_allclose(moved.ground[resting], track.ground[resting], atol=1e-9)
        np.testing.assert_allclose(moved.angles[resting], track.angles[resting], atol=1e-9)
        np.testing.assert_allclose(moved.yaw[resting], track.yaw[resting], atol=1e-9)

        # Always forward, and looking there.
        steps = np.diff(moved.ground[walking], axis=0) * 16
        speed = steps @ along(heading)
        assert (speed > 0.8).all()
        assert (speed < 1.5).all()
        np.testing.assert_allclose(steps, speed[:, None] * along(heading), atol=1e-9)
        np.testing.assert_allclose(unit(moved.yaw[walking]), np.tile(along(heading), (len(steps) + 1, 1)), atol=1e-6)
        assert np.abs(np.diff(moved.yaw)).max() < 0.6
