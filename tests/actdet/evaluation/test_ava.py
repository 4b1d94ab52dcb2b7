"""Frame-AP of AVA: plain loops on random scenes, and small cases worked out on paper."""

from __future__ import annotations

import numpy as np
import pytest

from actdet.evaluation.ava import ava_precision
from tests.actdet.evaluation import loops
from tests.actdet.evaluation.loops import FrameBox
from tests.actdet.evaluation.scenes import CLASSES, frame_table, frames_of, random_scene

BOX = (0.1, 0.1, 0.5, 0.5)
FAR = (0.7, 0.7, 0.9, 0.9)


def has_area(item: FrameBox) -> bool:
    return item.box[2] > item.box[0] and item.box[3] > item.box[1]


@pytest.mark.parametrize("ignore_empty", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_equals_the_loops(seed: int, ignore_empty: bool) -> None:
    scene = random_scene(seed)
    truth = frames_of(scene.truth)
    detections = [FrameBox(item.video, item.start, item.label, item.boxes[0], item.score) for item in scene.tubelets]
    result = ava_precision(frame_table(truth), frame_table(detections), CLASSES, ignore_empty=ignore_empty)

    solid = [item for item in detections if has_area(item)]
    assert result.dropped == len(detections) - len(solid)
    expected = [
        loops.frame_ap(
            truth,
            solid,
            label,
            rule="best only",
            inclusive=False,
            which="envelope",
            annotated_only=ignore_empty,
        )
        for label in range(CLASSES)
    ]
    counted = [value for value in expected if value is not None]
    found = [None if np.isnan(value) else value for value in result.precision.ap]
    assert found == pytest.approx(expected, abs=1e-12)
    assert result.precision.mean == pytest.approx(sum(counted) / len(counted), abs=1e-12)


def test_key_frames_without_truth_tell_the_variants_apart() -> None:
    truth = frame_table([FrameBox(0, 902, 0, BOX)])
    detections = frame_table([FrameBox(0, 903, 0, BOX, 0.9), FrameBox(0, 902, 0, BOX, 0.8)])
    assert ava_precision(truth, detections, 1).precision.mean == 0.5
    assert ava_precision(truth, detections, 1, ignore_empty=True).precision.mean == 1.0


def test_a_class_that_nobody_detected_counts_officially_alone() -> None:
    truth = frame_table([FrameBox(0, 902, 0, BOX), FrameBox(0, 902, 1, FAR)])
    detections = frame_table([FrameBox(0, 902, 0, BOX, 0.9)])
    assert ava_precision(truth, detections, 2).precision.mean == 0.5
    other = ava_precision(truth, detections, 2, ignore_empty=True).precision
    assert other.mean == 1.0
    assert other.truths.tolist() == [1, 1]


def test_boxes_without_an_area_are_dropped() -> None:
    truth = frame_table([FrameBox(0, 902, 0, BOX)])
    flat = (0.1, 0.1, 0.1, 0.5)
    turned = (0.5, 0.5, 0.1, 0.1)
    detections = [FrameBox(0, 902, 0, box, score) for box, score in ((flat, 0.9), (turned, 0.9), (BOX, 0.1))]
    result = ava_precision(truth, frame_table(detections), 1)
    assert result.dropped == 2
    assert result.precision.mean == 1.0


def test_detections_of_a_key_frame_are_matched_by_score_whatever_their_order() -> None:
    """The second, surer one takes the truth, so that precision 1 is reached at once."""
    truth = frame_table([FrameBox(0, 902, 0, BOX)])
    detections = [FrameBox(0, 902, 0, BOX, 0.3), FrameBox(0, 902, 0, BOX, 0.8)]
    assert ava_precision(truth, frame_table(detections), 1).precision.mean == 1.0
    assert ava_precision(truth, frame_table(detections[::-1]), 1).precision.mean == 1.0


def test_no_detections() -> None:
    truth = frame_table([FrameBox(0, 902, 0, BOX)])
    assert ava_precision(truth, frame_table([]), 2).precision.mean == 0.0
    assert ava_precision(truth, frame_table([]), 2, ignore_empty=True).precision.mean is None
    assert np.isnan(ava_precision(truth, frame_table([]), 2).precision.ap[1])
