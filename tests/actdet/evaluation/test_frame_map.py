"""Frame-mAP and its error split: small cases worked out on paper, and plain loops on random scenes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from actdet.evaluation.arrays import FrameBoxes, empty_frames
from actdet.evaluation.frame_map import FrameMap, frame_outcomes, pool_tubelets
from actdet.evaluation.protocols import ACT, MOC, YOWO, Protocol, Suppression
from tests.actdet.evaluation import loops
from tests.actdet.evaluation.loops import FrameBox
from tests.actdet.evaluation.scenes import (
    CLASSES,
    frame_table,
    frames_of,
    random_scene,
    tubelet_table,
)

PROTOCOLS = pytest.mark.parametrize("protocol", [ACT, MOC, YOWO], ids=lambda protocol: protocol.name)

BOX = (0.0, 0.0, 9.0, 9.0)
# IoU 1/2 with BOX, with the inclusive pixel.
HALF = (0.0, 0.0, 4.0, 9.0)
FAR = (50.0, 50.0, 59.0, 59.0)


def measure(truth: list[FrameBox], detections: list[FrameBox], protocol: Protocol = ACT, iou: float = 0.5) -> FrameMap:
    frame_map = FrameMap(CLASSES, protocol, iou)
    frame_map.add(frame_table(truth), frame_table(detections))
    return frame_map


@PROTOCOLS
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_equals_the_loops(seed: int, length: int, protocol: Protocol) -> None:
    scene = random_scene(seed, length)
    truth = frames_of(scene.truth)
    suppression = protocol.suppression
    pooled = loops.pool(
        scene.tubelets,
        suppression.threshold if suppression else None,
        suppression is not None and suppression.soft,
    )
    table = pool_tubelets(tubelet_table(scene.tubelets, length), suppression)
    assert table.frames.tolist() == [item.frame for item in pooled]
    np.testing.assert_array_equal(table.scores, [item.score for item in pooled])

    frame_map = FrameMap(CLASSES, protocol)
    frame_map.add(frame_table(truth), table)
    for frames in ("all", "annotated"):
        result = frame_map.precision(frames)  # type: ignore[arg-type]
        for label in range(CLASSES):
            expected = loops.frame_ap(
                truth,
                pooled,
                label,
                rule=protocol.rule,
                which=protocol.curve,
                annotated_only=frames == "annotated",
            )
            if expected is None:
                assert np.isnan(result.ap[label])
            else:
                assert result.ap[label] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("iou", [0.2, 0.5, 0.75])
@pytest.mark.parametrize("seed", range(6))
def test_errors_equal_the_loops_and_add_up(seed: int, iou: float) -> None:
    scene = random_scene(seed)
    truth = frames_of(scene.truth)
    pooled = loops.pool(scene.tubelets, 0.3, soft=False)
    errors = measure(truth, pooled, iou=iou).errors("all")
    assert np.isnan(errors.right[CLASSES - 1])
    for label in {item.label for item in truth}:
        expected = loops.frame_errors(truth, pooled, label, iou)
        found = {name: values[label] for name, values in vars(errors).items()}
        assert found == pytest.approx(expected, abs=1e-12)
        assert sum(found.values()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_videos_may_come_in_any_portions(seed: int) -> None:
    """Equal scores excepted, whose order is that in which they come."""
    scene = random_scene(seed, coarse=False)
    truth = frame_table(frames_of(scene.truth))
    detections = pool_tubelets(tubelet_table(scene.tubelets, 1), ACT.suppression)
    whole = FrameMap(CLASSES, ACT)
    whole.add(truth, detections)
    apart = FrameMap(CLASSES, ACT)
    for video in (2, 0, 3, 1):
        apart.add(truth.take(truth.videos == video), detections.take(detections.videos == video))
    np.testing.assert_allclose(apart.precision("all").ap, whole.precision("all").ap, atol=1e-12)
    np.testing.assert_array_equal(apart.precision("all").truths, whole.precision("all").truths)


def test_the_split_of_known_errors() -> None:
    truth = [FrameBox(0, 0, 0, BOX), FrameBox(0, 1, 1, BOX), FrameBox(1, 0, 1, BOX)]
    detections = [
        FrameBox(0, 0, 0, BOX, 0.9),  # right
        FrameBox(0, 0, 0, BOX, 0.8),  # a second one of the same truth: localization
        FrameBox(0, 0, 0, FAR, 0.7),  # localization
        FrameBox(0, 1, 0, BOX, 0.6),  # where class 1 is: classification
        FrameBox(0, 1, 0, FAR, 0.5),  # where class 1 is not: other
        FrameBox(0, 2, 0, BOX, 0.4),  # the video has class 0 in another frame: time
        FrameBox(1, 2, 0, BOX, 0.3),  # the video has no class 0: other
    ]
    outcomes = frame_outcomes(
        frame_table(truth), frame_table(detections), iou=0.5, rule="best unmatched", inclusive=True
    )
    assert outcomes.tolist() == [0, 1, 1, 2, 4, 3, 4]


@pytest.mark.parametrize(("box", "ap"), [(HALF, 1.0), ((0.0, 0.0, 3.9, 9.0), 0.0)])
def test_an_iou_of_exactly_the_threshold_is_enough(box: loops.Box, ap: float) -> None:
    assert measure([FrameBox(0, 0, 0, BOX)], [FrameBox(0, 0, 0, box, 0.5)]).precision("all").ap[0] == ap


@pytest.mark.parametrize(("protocol", "right"), [(ACT, 2), (YOWO, 1)])
def test_only_act_has_a_second_choice(protocol: Protocol, right: int) -> None:
    """Both detections overlap the first truth best, and the second one well enough."""
    truth = [FrameBox(0, 0, 0, BOX), FrameBox(0, 0, 0, (0.0, 0.0, 9.0, 7.0))]
    detections = [FrameBox(0, 0, 0, BOX, 0.9), FrameBox(0, 0, 0, BOX, 0.8)]
    outcomes = frame_outcomes(frame_table(truth), frame_table(detections), iou=0.5, rule=protocol.rule, inclusive=True)
    assert int((outcomes == 0).sum()) == right


def test_frames_without_truth_count_only_among_all_frames() -> None:
    """Background first, then the right one: a precision of 1/2 at recall 1."""
    detections = [FrameBox(0, 7, 0, BOX, 0.9), FrameBox(0, 0, 0, BOX, 0.8)]
    frame_map = measure([FrameBox(0, 0, 0, BOX)], detections)
    assert frame_map.precision("all").ap[0] == 0.25
    assert frame_map.precision("annotated").ap[0] == 1.0
    assert measure([FrameBox(0, 0, 0, BOX)], detections, YOWO).precision("all").ap[0] == 0.5


def test_soft_suppression_keeps_boxes_with_less() -> None:
    """Two equal boxes: the second one has an IoU of 1, so its score becomes 0."""
    tubelets = tubelet_table([loops.Tubelet(0, 0, 0, (BOX,), 0.5), loops.Tubelet(0, 0, 0, (BOX,), 0.4)], 1)
    assert pool_tubelets(tubelets, Suppression(0.6, soft=True)).scores.tolist() == [0.5, 0.0]
    assert pool_tubelets(tubelets, Suppression(0.6)).scores.tolist() == [0.5]
    assert pool_tubelets(tubelets, None).scores.tolist() == [0.5, 0.4]


@pytest.mark.parametrize("truth", [[], [FrameBox(0, 0, 0, BOX)]])
def test_no_detections(truth: list[FrameBox]) -> None:
    result = measure(truth, []).precision("all")
    assert result.mean == (0.0 if truth else None)
    assert FrameMap(CLASSES, ACT).precision("annotated").mean is None
    missed = measure(truth, []).errors("all").means()["missed"]
    assert missed == (1.0 if truth else None)


def test_memory_does_not_grow_with_all_pairs() -> None:
    """A frame of 3,000 detections and 1,000 truths: a table of all pairs would take 24 MB for each of its columns."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 1000, (4000, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 60, (4000, 2))], axis=1)
    zeros = np.zeros(4000, dtype=np.int64)
    every = FrameBoxes(zeros, zeros, zeros, boxes, rng.random(4000))

    tracemalloc.start()
    frame_outcomes(
        every.take(np.arange(3000, 4000)), every.take(np.arange(3000)), iou=0.5, rule="best unmatched", inclusive=True
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 80e6


def test_an_empty_table() -> None:
    frame_map = FrameMap(2, ACT)
    frame_map.add(empty_frames(), empty_frames())
    assert frame_map.precision("all").detections.tolist() == [0, 0]
