"""Linking boxes to tubes as YOWO does it (`link_bbxes_between_frames` in `core/eval_results.py`).

In each video and class, a tube is the path through *all* frames of the video, one box in each, that is best by

    sum over neighboring frames of  IoU(a, b) + (score a + score b) + score a * score b / 2

with the IoU without the inclusive pixel. Its boxes are removed and the next path is searched, up to three, until some
frame has no box left. A frame without boxes borrows those of the nearest frame that has some. So tubes are never
trimmed: they span the video even where nothing happens, and the tube IoU with shorter truth suffers for it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from actdet.errors import ActdetError
from actdet.evaluation.arrays import FrameBoxes, TubeBoxes, class_keys, join_tubes, spans, to_offsets
from actdet.evaluation.boxes import box_iou

_IOU_WEIGHT = 1.0
_SCORE_WEIGHT = 1.0
_PRODUCT_WEIGHT = 0.5
_MOST_TUBES = 3

# A longer video, nine hours of 30 frames a second, is a mistake in a file: paths go through each of its frames.
_MOST_FRAMES = 10**6

# How many weights of pairs of boxes are held at once, unless a single video and class has more.
_MOST_WEIGHTS = 2**20


def link_best_paths(boxes: FrameBoxes, lengths: np.ndarray) -> TubeBoxes:
    """Link boxes to tubes.

    Args:
        boxes: All boxes of some videos.
        lengths: (videos,) int64, how many frames each video has; no box lies in a later frame.

    Returns:
        Up to three tubes for each video and class that has a box. A tube's score is the mean of its boxes' scores.

    Raises:
        ActdetError: A video is too long.
    """
    longest = int(lengths.max(initial=0))
    if longest > _MOST_FRAMES:
        raise ActdetError(f"a video has {longest} frames; paths through a whole video are for at most {_MOST_FRAMES}")

    order = np.lexsort((boxes.frames, boxes.labels, boxes.videos))
    boxes = boxes.take(order)
    chains = class_keys(boxes.videos, boxes.labels)
    begins = np.flatnonzero(np.diff(chains, prepend=-1))
    counts = np.diff(begins, append=len(boxes))
    of_chain = lengths[boxes.videos[begins]]
    most = _most_in_a_frame(boxes, begins)

    parts = []
    for chosen in _batches(of_chain, most):
        rows = spans(begins[chosen], counts[chosen])
        parts.append(_link(boxes.take(rows), counts[chosen], of_chain[chosen]))
    tubes = join_tubes(parts)
    return tubes.take(np.lexsort((tubes.labels, tubes.videos)))


def _batches(lengths: np.ndarray, most: np.ndarray) -> Iterator[np.ndarray]:
    """Put chains of similar size together, as many as may be held at once."""
    batch: list[int] = []
    longest = 0
    for chain in np.lexsort((lengths, most)).tolist():
        longest = max(longest, int(lengths[chain]))
        if batch and (len(batch) + 1) * longest * int(most[chain]) ** 2 > _MOST_WEIGHTS:
            yield np.array(batch)
            batch = []
            longest = int(lengths[chain])
        batch.append(chain)
    if batch:
        yield np.array(batch)


def _most_in_a_frame(boxes: FrameBoxes, begins: np.ndarray) -> np.ndarray:
    """How many boxes each chain has in its fullest frame."""
    if not len(boxes):
        return np.zeros(0, dtype=np.int64)
    changes = np.zeros(len(boxes), dtype=bool)
    changes[begins] = True
    changes[1:] |= np.diff(boxes.frames) != 0
    frames = np.flatnonzero(changes)
    counts = np.diff(frames, append=len(boxes))
    return np.maximum.reduceat(counts, np.searchsorted(frames, begins))


def _link(boxes: FrameBoxes, counts: np.ndarray, lengths: np.ndarray) -> TubeBoxes:
    """Link the boxes of n chains, which lie one after another.

    Args:
        boxes: Sorted by chain, then frame.
        counts: (n,) how many boxes each chain has.
        lengths: (n,) how many frames each chain's video has.
    """
    rows = _fill_frames(boxes, counts, lengths)
    present = rows >= 0
    corners = boxes.boxes[np.maximum(rows, 0)]
    scores = np.where(present, boxes.scores[np.maximum(rows, 0)], 0.0).astype(np.float64)
    weights = _pair_weights(corners, scores)

    free = present.copy()
    frames = np.arange(rows.shape[1])
    inside = frames < lengths[:, None]
    begins = to_offsets(counts)[:-1]
    active = np.ones(len(lengths), dtype=bool)
    parts = []
    for _ in range(_MOST_TUBES):
        # A chain has no further path once all boxes of some frame are taken.
        active = active & (free.any(axis=2) | ~inside).all(axis=1)
        chosen = np.flatnonzero(active)
        if not len(chosen):
            break

        path = _best_paths(weights[chosen], free[chosen], lengths[chosen])
        on_path = np.take_along_axis(rows[chosen], path[:, :, None], axis=2)[:, :, 0]
        covered = inside[chosen]
        of_path = lengths[chosen]
        picked = on_path[covered]
        parts.append(
            TubeBoxes(
                boxes.videos[begins[chosen]],
                boxes.labels[begins[chosen]],
                np.bincount(np.repeat(np.arange(len(chosen)), of_path), boxes.scores[picked]) / of_path,
                to_offsets(of_path),
                np.broadcast_to(frames, covered.shape)[covered],
                boxes.boxes[picked],
            )
        )
        free[chosen[:, None], frames, path] = False
    return join_tubes(parts)


def _fill_frames(boxes: FrameBoxes, counts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Lay the boxes out by chain and frame; frames without boxes borrow those of the nearest one, the earlier of two.

    Returns:
        (n, T, M) int64, rows of `boxes`, -1 where there is none. T is the longest video, M the fullest frame.
    """
    chains = np.repeat(np.arange(len(counts)), counts)
    longest = int(lengths.max())
    cells = chains * longest + boxes.frames
    begins = np.flatnonzero(np.diff(cells, prepend=-1))
    in_cell = np.diff(begins, append=len(cells))
    places = np.arange(len(cells)) - np.repeat(begins, in_cell)

    rows = np.full((len(counts) * longest, int(in_cell.max())), -1, dtype=np.int64)
    rows[cells, places] = np.arange(len(cells))
    rows = rows.reshape(len(counts), longest, -1)

    frames = np.arange(longest)
    filled = rows[:, :, 0] >= 0
    never = 2 * longest
    before = np.maximum.accumulate(np.where(filled, frames, -never), axis=1)
    after = np.minimum.accumulate(np.where(filled, frames, 2 * never)[:, ::-1], axis=1)[:, ::-1]
    source = np.where(frames - before <= after - frames, before, after)

    rows = np.take_along_axis(rows, source[:, :, None], axis=1)
    rows[frames >= lengths[:, None]] = -1
    return rows


def _pair_weights(corners: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(n, T - 1, M, M): what it is worth to go from a box to a box of the next frame."""
    first = corners[:, :-1, :, None]
    second = corners[:, 1:, None]
    weights = _IOU_WEIGHT * box_iou(first, second, inclusive=False)
    first_scores = scores[:, :-1, :, None]
    second_scores = scores[:, 1:, None]
    weights += _SCORE_WEIGHT * (first_scores + second_scores)
    weights += _PRODUCT_WEIGHT * (first_scores * second_scores)
    return weights


def _best_paths(weights: np.ndarray, free: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Find the best path of each chain through the boxes that are free.

    Args:
        weights: (n, T - 1, M, M) float64.
        free: (n, T, M) bool.
        lengths: (n,) int64, in how many frames each path lies, at most T.

    Returns:
        (n, T) int64, which box the path has in each frame; 0 after its end. Of equal paths, the one with the lower
        number first.
    """
    chains, longest, most = free.shape
    value = np.zeros((chains, most))
    following = np.zeros((longest, chains, most), dtype=np.int64)
    for frame in range(longest - 2, -1, -1):
        # Boxes that are taken are never a step of the path. After the end, nothing counts.
        allowed = np.where(free[:, frame + 1], value, -np.inf)
        worth = weights[:, frame] + allowed[:, None]
        following[frame] = worth.argmax(axis=2)
        within = (frame + 1 < lengths)[:, None]
        value = np.where(within, worth.max(axis=2), 0.0)

    path = np.zeros((chains, longest), dtype=np.int64)
    path[:, 0] = np.where(free[:, 0], value, -np.inf).argmax(axis=1)
    everyone = np.arange(chains)
    for frame in range(longest - 1):
        path[:, frame + 1] = following[frame, everyone, path[:, frame]]
    return path
