"""Frame-AP of AVA (Gu et al., CVPR 2018): boxes in key frames, one a second, at an IoU of 0.5.

A detection looks at the truth of its class in its key frame alone, and is right if the truth that it overlaps best is
still free and the IoU is at least 0.5: there is no second choice. The AP is the envelope's, as in VOC, and mAP the mean
over the classes that have truth. Detections without an area are dropped. Two implementations are in use:

    ava                the official one, and PySlowFast's (`ava_eval_helper.run_evaluation`): detections in key frames
                       without any truth are wrong. PySlowFast matches the detections of a key frame in the order of
                       the file, the official one, as here, by score.
    ava-ignore-empty   mmaction2's default (`ignore_empty_frames=True`): detections in key frames without any truth do
                       not count, and neither does a class of which no detection is left. Its figures are higher.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from actdet.evaluation.arrays import FrameBoxes, frame_keys
from actdet.evaluation.average_precision import ClassPrecision, Ranking, class_precision
from actdet.evaluation.frame_map import RIGHT, ErrorSplit, frame_outcomes, split_errors
from actdet.evaluation.matching import is_among

IOU = 0.5


@dataclass(frozen=True)
class AvaResult:
    """What detections are worth on AVA."""

    precision: ClassPrecision
    errors: ErrorSplit
    dropped: int
    """How many detections had no area."""


def ava_precision(
    truth: FrameBoxes, detections: FrameBoxes, classes: int, *, ignore_empty: bool = False, iou: float = IOU
) -> AvaResult:
    """Compute the average precision of each class.

    Args:
        truth: Every annotated box in the key frames that count; frames are seconds.
        detections: The detections in the key frames that count.
        classes: How many classes there are.
        ignore_empty: Whether to do as mmaction2 does.
        iou: The least IoU of a match.
    """
    boxes = detections.boxes
    solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    dropped = int(np.sum(~solid))
    counted = solid
    if ignore_empty:
        annotated = frame_keys(truth.videos, truth.frames)
        counted = solid & is_among(frame_keys(detections.videos, detections.frames), annotated)
    if not counted.all():
        detections = detections.take(counted)

    truths = np.bincount(truth.labels, minlength=classes)
    counted_truths = truths
    if ignore_empty:
        detected = np.bincount(detections.labels, minlength=classes)
        counted_truths = np.where(detected > 0, truths, 0)

    outcomes = frame_outcomes(truth, detections, iou=iou, rule="best only", inclusive=False)
    ranking = Ranking.of(detections.labels, detections.scores, classes)
    found = class_precision(ranking, outcomes == RIGHT, counted_truths, "envelope")
    errors = split_errors(ranking, outcomes, counted_truths)
    return AvaResult(ClassPrecision(found.ap, truths, found.detections), errors, dropped)
