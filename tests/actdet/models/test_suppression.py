"""Suppression of tubelets equals a loop in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from actdet.models.suppression import suppress_tracks


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    union = sum(areas) - shared
    return shared / union if union > 0 else 0.0


def suppressed_by_loops(scores: np.ndarray, boxes: np.ndarray, threshold: float) -> np.ndarray:
    """Of one clip: the best of those left stays, and takes the score from those that overlap it."""
    scores = scores.copy()
    tubelets, frames, classes = scores.shape
    for label in range(classes):
        left = sorted(range(tubelets), key=lambda row: (-scores[row, :, label].mean(), row))
        while left:
            best, *others = left
            left = []
            for row in others:
                overlaps = [iou(boxes[best, frame].tolist(), boxes[row, frame].tolist()) for frame in range(frames)]
                if sum(overlaps) / frames > threshold:
                    scores[row, :, label] = 0
                else:
                    left.append(row)
    return scores


def random_tubelets(seed: int, clips: int, tubelets: int, frames: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes near few places, and scores of which many are equal."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 5, (clips, tubelets, 1, classes)) / 4 * np.ones((1, 1, frames, 1))
    scores[::2] *= rng.choice([0.5, 1.0], (len(scores[::2]), tubelets, frames, classes))
    corner = rng.uniform(0, 0.4, (clips, tubelets, 1, 2)) + rng.uniform(0, 0.1, (clips, tubelets, frames, 2))
    side = rng.uniform(0.1, 0.5, (clips, tubelets, frames, 2))
    return scores, np.concatenate([corner, corner + side], -1)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("shape", [(3, 10, 5, 4), (1, 1, 1, 1), (2, 7, 1, 3), (2, 2, 9, 1), (2, 0, 5, 2), (0, 3, 5, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loop(seed: int, shape: tuple[int, int, int, int], threshold: float) -> None:
    scores, boxes = random_tubelets(seed, *shape)
    got = suppress_tracks(torch.from_numpy(scores), torch.from_numpy(boxes), threshold)
    assert got.shape == shape
    for clip in range(shape[0]):
        np.testing.assert_array_equal(got[clip].numpy(), suppressed_by_loops(scores[clip], boxes[clip], threshold))


def test_random_tubelets_suppress_each_other_and_do_not() -> None:
    """So that the comparison above says something."""
    scores, boxes = random_tubelets(0, 3, 10, 5, 4)
    got = suppress_tracks(torch.from_numpy(scores), torch.from_numpy(boxes), 0.3).numpy()
    lost = ((got == 0) & (scores > 0)).mean() / (scores > 0).mean()
    assert 0.2 < lost < 0.8


def test_who_is_suppressed_suppresses_nobody() -> None:
    """A chain of boxes, each of which overlaps its neighbors by a third."""
    left = torch.tensor([0.0, 1.0, 2.0, 3.0])
    boxes = torch.stack([left, left * 0, left + 2, left * 0 + 1], -1)[None, :, None]
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])[None, :, None, None]
    assert suppress_tracks(scores, boxes, 0.3).flatten().tolist() == pytest.approx([0.9, 0, 0.7, 0])
    assert suppress_tracks(scores, boxes, 0.34).flatten().tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6])


def test_each_class_has_an_order_of_its_own() -> None:
    boxes = torch.tensor([0.1, 0.1, 0.5, 0.5]).expand(1, 2, 3, 4)
    scores = torch.tensor([[0.9, 0.2], [0.3, 0.4]])[None, :, None].expand(1, 2, 3, 2)
    got = suppress_tracks(scores, boxes, 0.3)
    torch.testing.assert_close(got[0, :, 1], torch.tensor([[0.9, 0.0], [0.0, 0.4]]))


def test_boxes_without_an_area_overlap_nobody() -> None:
    scores = torch.tensor([0.9, 0.8])[None, :, None, None].expand(1, 2, 2, 1)
    boxes = torch.full((1, 2, 2, 4), 0.5)
    assert torch.equal(suppress_tracks(scores, boxes, 0.0), scores)

    # In the other frame the two are the same, which is an overlap of a half.
    boxes[:, :, 1, 2:] = 0.75
    assert torch.equal(suppress_tracks(scores, boxes, 0.5), scores)
    assert suppress_tracks(scores, boxes, 0.49)[0, 1].tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scores_keep_their_dtype_and_their_values(dtype: torch.dtype) -> None:
    scores, boxes = random_tubelets(1, 2, 6, 3, 2)
    given = torch.from_numpy(scores).to(dtype)
    got = suppress_tracks(given, torch.from_numpy(boxes), 0.3)
    assert got.dtype == dtype
    assert ((got == given) | (got == 0)).all()


def test_nothing_is_read_back() -> None:
    """On a device without values, reading one is an error."""
    scores = torch.zeros(2, 10, 5, 3, device="meta")
    assert suppress_tracks(scores, torch.zeros(2, 10, 5, 4, device="meta"), 0.3).shape == (2, 10, 5, 3)
