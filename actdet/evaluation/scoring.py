"""All figures of a protocol, from detections and truth.

Detections come video by video, and only what the figures need is kept of them: the score and the outcome of each box,
and the linked tubes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from actdet.evaluation.arrays import FrameBoxes, Truth, TubeBoxes, TubeletBoxes, empty_frames, join_tubelets, join_tubes
from actdet.evaluation.average_precision import ClassPrecision
from actdet.evaluation.frame_map import ErrorSplit, FrameMap, pool_tubelets
from actdet.evaluation.linking import link_tubelets
from actdet.evaluation.matching import is_among
from actdet.evaluation.protocols import (
    AVERAGED_THRESHOLDS,
    VIDEO_THRESHOLDS,
    Frames,
    Protocol,
    describe_frames,
    describe_video,
)
from actdet.evaluation.reading import Found
from actdet.evaluation.tubes import suppress_tubes
from actdet.evaluation.video_map import VideoMap
from actdet.evaluation.viterbi import link_best_paths

FRAME_IOU = 0.5

# How many boxes are worked on together, unless a single video has more.
_MOST_BOXES = 2**19


@dataclass(frozen=True)
class Figure:
    """One figure, and what it is made of."""

    name: str
    """frame-mAP or video-mAP."""
    iou: str
    """The threshold, or the first and the last one of several that are averaged."""
    variant: str
    """By which variant of the protocol."""
    precision: ClassPrecision
    errors: ErrorSplit | None
    """None for a mean over several thresholds."""


def score_found(
    truth: Truth,
    found: Found,
    protocol: Protocol,
    frames: Sequence[Frames],
    progress: Callable[[int, int], None] | None = None,
) -> list[Figure]:
    """Compute every figure that detections and truth allow.

    Args:
        truth: What is true.
        found: What was detected. Tubes have no frame-mAP; truth without tubes has no video-mAP.
        protocol: By which rules.
        frames: Which variants of frame-mAP.
        progress: Called with how many videos are done, and of how many.
    """
    classes = len(truth.class_names)
    figures = []
    if found.tubes is None:
        frame_map, tubes = _go_through(truth, found, protocol, progress)
        for variant in frames:
            figures.append(
                Figure(
                    "frame-mAP",
                    f"{FRAME_IOU:g}",
                    describe_frames(protocol, variant),
                    frame_map.precision(variant),
                    frame_map.errors(variant),
                )
            )
    else:
        tubes = found.tubes

    if truth.tubes is not None:
        best = suppress_tubes(
            tubes, protocol.tube_threshold, inclusive=protocol.inclusive, least_common=protocol.least_common
        )
        video_map = VideoMap(truth.tubes, best, classes, protocol)
        figures += _video_figures(video_map, describe_video(protocol, linked=found.tubes is None))
    return figures


def _go_through(
    truth: Truth, found: Found, protocol: Protocol, progress: Callable[[int, int], None] | None
) -> tuple[FrameMap, TubeBoxes]:
    """Match the boxes of all videos, and link them if that is of use."""
    frame_map = FrameMap(len(truth.class_names), protocol, FRAME_IOU)
    unseen = np.ones(len(truth.videos), dtype=bool)
    parts = []
    for tubelets in _batches(found.tubelets):
        unseen[tubelets.videos] = False
        pooled = pool_tubelets(tubelets, protocol.suppression, inclusive=protocol.inclusive)
        frame_map.add(_truth_of(truth, np.unique(tubelets.videos)), pooled)
        if truth.tubes is not None:
            parts.append(_link(tubelets, pooled, found.lengths, protocol))
        if progress is not None:
            progress(int((~unseen).sum()), len(truth.videos))

    frame_map.add(_truth_of(truth, np.flatnonzero(unseen)), empty_frames())
    return frame_map, join_tubes(parts)


def _batches(tables: Iterable[TubeletBoxes]) -> Iterator[TubeletBoxes]:
    """Put the tables of several videos together."""
    batch: list[TubeletBoxes] = []
    boxes = 0
    for table in tables:
        batch.append(table)
        boxes += len(table) * table.length
        if boxes >= _MOST_BOXES:
            yield join_tubelets(batch)
            batch = []
            boxes = 0
    if batch:
        yield join_tubelets(batch)


def _truth_of(truth: Truth, videos: np.ndarray) -> FrameBoxes:
    return truth.frames.take(is_among(truth.frames.videos, videos))


def _link(tubelets: TubeletBoxes, pooled: FrameBoxes, lengths: np.ndarray, protocol: Protocol) -> TubeBoxes:
    if protocol.link is None:
        return link_best_paths(pooled, lengths)
    return link_tubelets(tubelets, protocol.link, inclusive=protocol.inclusive)


def _video_figures(video_map: VideoMap, variant: str) -> Iterator[Figure]:
    for threshold in VIDEO_THRESHOLDS:
        yield Figure(
            "video-mAP",
            f"{threshold:g}",
            variant,
            video_map.precision(threshold),
            video_map.errors(threshold),
        )
    averaged = f"{AVERAGED_THRESHOLDS[0]:g}:{AVERAGED_THRESHOLDS[-1]:g}"
    yield Figure("video-mAP", averaged, variant, video_map.mean_precision(AVERAGED_THRESHOLDS), None)
