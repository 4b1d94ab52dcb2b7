"""Overlap of tubes in space and time, and non-maximum suppression of tubes.

The overlap is `iou3dt` of the ACT scripts (Kalogeiton et al., "Action Tubelet Detector for Spatio-Temporal Action
Localization", ICCV 2017):

    tube IoU = mean over the common frames of the boxes' IoU  x  common frames / frames that either tube has

and 0 if no frame is common. The scripts assume tubes without gaps; with gaps, frames are counted as sets. YOWO's
version also gives 0 if only one frame is common.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from actdet.evaluation.arrays import MOST_FRAMES, TubeBoxes, class_keys, spans, to_offsets
from actdet.evaluation.boxes import box_iou
from actdet.evaluation.matching import in_chunks
from actdet.evaluation.suppression import suppress


@dataclass(frozen=True)
class TubeOverlap:
    """How much the tubes of each pair overlap."""

    tube_iou: np.ndarray
    """(p,) float64 in [0, 1], in space and time."""
    spatial: np.ndarray
    """(p,) float64 in [0, 1], the mean IoU over the common frames alone; 0 if there are none."""
    common: np.ndarray
    """(p,) int64, how many frames are common."""


def overlap_tubes(
    first: TubeBoxes,
    second: TubeBoxes,
    first_rows: np.ndarray,
    second_rows: np.ndarray,
    *,
    inclusive: bool = True,
    least_common: int = 1,
) -> TubeOverlap:
    """Compare tubes pair by pair.

    Args:
        first: Tubes.
        second: Tubes.
        first_rows: (p,) int64, which tube of `first` each pair has.
        second_rows: (p,) int64, which tube of `second` each pair has, in the same video.
        inclusive: Whether x2 and y2 are the last pixel inside a box; see `box_iou`.
        least_common: How many frames must be common for the overlap to be more than 0.
    """
    # Only the frames of the first tube that lie within the second one's time can be common.
    begin = np.maximum(first.first[first_rows], second.first[second_rows])
    end = np.minimum(first.last[first_rows], second.last[second_rows])
    starts, stops = _between(first, _search_keys(first), first_rows, begin, end)
    counts = np.maximum(stops - starts, 0)
    second_keys = _search_keys(second)

    sums = np.zeros(len(first_rows))
    common = np.zeros(len(first_rows), dtype=np.int64)
    for chunk in in_chunks(counts):
        pairs = np.repeat(np.arange(chunk.stop - chunk.start), counts[chunk])
        in_first = spans(starts[chunk], counts[chunk])
        in_second, found = _find(second, second_keys, second_rows[chunk][pairs], first.frames[in_first])

        pairs = pairs[found]
        values = box_iou(first.boxes[in_first[found]], second.boxes[in_second[found]], inclusive=inclusive)
        sums[chunk] = np.bincount(pairs, values, minlength=chunk.stop - chunk.start)
        common[chunk] = np.bincount(pairs, minlength=chunk.stop - chunk.start)

    either = first.counts[first_rows] + second.counts[second_rows] - common
    spatial = sums / np.maximum(common, 1)
    overlap = np.where(common >= least_common, spatial * (common / either), 0.0)
    return TubeOverlap(overlap, spatial, common)


def tube_iou(
    first_frames: np.ndarray,
    first_boxes: np.ndarray,
    second_frames: np.ndarray,
    second_boxes: np.ndarray,
    *,
    inclusive: bool = True,
) -> float:
    """Compare two tubes.

    Args:
        first_frames: (n,) int, ascending.
        first_boxes: (n, 4) x1 y1 x2 y2.
        second_frames: (m,) int, ascending.
        second_boxes: (m, 4).
        inclusive: Whether x2 and y2 are the last pixel inside a box; see `box_iou`.

    Returns:
        Their overlap in space and time, in [0, 1].
    """
    zero = np.zeros(1, dtype=np.int64)
    first, second = (
        TubeBoxes(zero, zero, np.ones(1), np.array([0, len(frames)]), np.asarray(frames), np.asarray(boxes))
        for frames, boxes in ((first_frames, first_boxes), (second_frames, second_boxes))
    )
    return float(overlap_tubes(first, second, zero, zero, inclusive=inclusive).tube_iou[0])


def suppress_tubes(tubes: TubeBoxes, threshold: float, *, inclusive: bool = True, least_common: int = 1) -> TubeBoxes:
    """Keep the best tubes of each class in each video (`nms3dt`).

    Args:
        tubes: Scored tubes.
        threshold: A tube that overlaps a better one of its class by more than this is left out.
        inclusive: See `overlap_tubes`.
        least_common: See `overlap_tubes`.

    Returns:
        Those that are kept, in their order.
    """

    def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return overlap_tubes(tubes, tubes, first, second, inclusive=inclusive, least_common=least_common).tube_iou

    keep, _ = suppress(class_keys(tubes.videos, tubes.labels), tubes.scores, overlap, threshold)
    return tubes.take(keep)


def _between(
    tubes: TubeBoxes, keys: np.ndarray | None, rows: np.ndarray, begin: np.ndarray, end: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The span of rows of `tubes.frames` in which the frames `begin` to `end`, both included, of each tube lie."""
    if keys is None:
        starts = tubes.offsets[rows] + begin - tubes.first[rows]
        return starts, starts + end - begin + 1

    starts = np.searchsorted(keys, rows * MOST_FRAMES + begin, side="left")
    return starts, np.searchsorted(keys, rows * MOST_FRAMES + end, side="right")


def _find(
    tubes: TubeBoxes, keys: np.ndarray | None, rows: np.ndarray, frames: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where frames of tubes lie in `tubes.frames`, and whether the tubes have them."""
    if keys is None:
        return tubes.offsets[rows] + frames - tubes.first[rows], np.ones(len(rows), dtype=bool)

    wanted = rows * MOST_FRAMES + frames
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return places, keys[places] == wanted


def _search_keys(tubes: TubeBoxes) -> np.ndarray | None:
    """What frames are searched by; None if no tube has a gap, so that places can be computed."""
    if (tubes.last - tubes.first + 1 == tubes.counts).all():
        return None
    return np.repeat(np.arange(len(tubes)), tubes.counts) * MOST_FRAMES + tubes.frames


def tubes_of(videos: list[int], labels: list[int], scores: list[float], tracks: list[np.ndarray]) -> TubeBoxes:
    """Make a table of tubes.

    Args:
        videos: The video of each tube.
        labels: The class of each tube.
        scores: The score of each tube.
        tracks: (n, 5) float for each tube: frame, x1, y1, x2, y2.
    """
    rows = np.concatenate([np.zeros((0, 5)), *tracks])
    return TubeBoxes(
        np.array(videos, dtype=np.int64),
        np.array(labels, dtype=np.int64),
        np.array(scores, dtype=np.float64),
        to_offsets(np.array([len(track) for track in tracks], dtype=np.int64)),
        rows[:, 0].astype(np.int64),
        rows[:, 1:],
    )
