"""Video-mAP and its error split: plain loops on random scenes, and small cases worked out on paper."""

from __future__ import annotations

import numpy as np
import pytest

from actdet.evaluation.protocols import ACT, AVERAGED_THRESHOLDS, VIDEO_THRESHOLDS, YOWO, Protocol
from actdet.evaluation.video_map import VideoMap
from tests.actdet.evaluation import loops
from tests.actdet.evaluation.loops import Boxes, Track
from tests.actdet.evaluation.scenes import CLASSES, moved, tube_table

BOX = (0.0, 0.0, 9.0, 9.0)
FAR = (50.0, 50.0, 59.0, 59.0)


def during(first: int, last: int, box: loops.Box = BOX) -> Boxes:
    return dict.fromkeys(range(first, last + 1), box)


def random_tracks(seed: int) -> tuple[list[Track], list[Track]]:
    """Truth, without class 3 and without video 0, and detections, many of which follow truth for a while."""
    rng = np.random.default_rng(seed)
    truth = []
    for _ in range(14):
        first = int(rng.integers(15))
        box = moved(rng, (10.0, 10.0, 25.0, 29.0), coarse=True)
        last = first + int(rng.integers(12))
        boxes = {frame: moved(rng, box, coarse=True) for frame in range(first, last + 1)}
        truth.append(Track(int(rng.integers(1, 4)), int(rng.integers(CLASSES - 1)), boxes))

    tracks = []
    for _ in range(60):
        model = truth[rng.integers(len(truth))]
        frames = [frame + int(rng.integers(2)) * 5 for frame in model.boxes if rng.random() < 0.8] or [0]
        box = model.boxes[next(iter(model.boxes))]
        boxes = {frame: moved(rng, box, coarse=True) for frame in sorted(set(frames))}
        label = model.label if rng.random() < 0.7 else int(rng.integers(CLASSES))
        video = model.video if rng.random() < 0.8 else int(rng.integers(4))
        tracks.append(Track(video, label, boxes, float(rng.integers(6) / 6)))
    return truth, tracks


@pytest.mark.parametrize("protocol", [ACT, YOWO], ids=lambda protocol: protocol.name)
@pytest.mark.parametrize("seed", range(8))
def test_equals_the_loops(seed: int, protocol: Protocol) -> None:
    truth, tracks = random_tracks(seed)
    video_map = VideoMap(tube_table(truth), tube_table(tracks), CLASSES, protocol)
    for threshold in (0.0, *VIDEO_THRESHOLDS, 1.0):
        result = video_map.precision(threshold)
        for label in range(CLASSES):
            expected = loops.video_ap(truth, tracks, label, threshold, protocol.curve, protocol.least_common)
            if expected is None:
                assert np.isnan(result.ap[label])
            else:
                assert result.ap[label] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("threshold", [0.2, 0.5])
@pytest.mark.parametrize("seed", range(8))
def test_errors_equal_the_loops_and_add_up(seed: int, threshold: float) -> None:
    truth, tracks = random_tracks(seed)
    errors = VideoMap(tube_table(truth), tube_table(tracks), CLASSES, ACT).errors(threshold)
    for label in {track.label for track in truth}:
        found = {name: values[label] for name, values in vars(errors).items()}
        assert found == pytest.approx(loops.video_errors(truth, tracks, label, threshold), abs=1e-12)
        assert sum(found.values()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("track", "outcome"),
    [
        (Track(0, 0, during(0, 9)), 0),
        (Track(0, 0, during(0, 9, FAR)), 1),
        # Class 1 is in frames 20 to 29.
        (Track(0, 0, during(20, 29)), 2),
        # Right place, too long: 10 of 40 frames.
        (Track(0, 0, during(0, 39)), 3),
        # The right class at another time.
        (Track(0, 0, during(50, 59)), 3),
        # The right place and time, of a class that is elsewhere in the video.
        (Track(0, 1, during(0, 9)), 2),
        (Track(1, 0, during(0, 9)), 4),
    ],
)
def test_the_split_of_known_errors(track: Track, outcome: int) -> None:
    truth = [Track(0, 0, during(0, 9)), Track(0, 1, during(20, 29))]
    video_map = VideoMap(tube_table(truth), tube_table([track]), CLASSES, ACT)
    assert video_map.outcomes(0.5).tolist() == [outcome]


def test_a_second_tube_of_the_same_truth_is_an_error_of_localization() -> None:
    tracks = [Track(0, 0, during(0, 9), 0.5), Track(0, 0, during(0, 9), 0.6)]
    video_map = VideoMap(tube_table([Track(0, 0, during(0, 9))]), tube_table(tracks), CLASSES, ACT)
    assert video_map.outcomes(0.5).tolist() == [1, 0]


@pytest.mark.parametrize(("protocol", "ap"), [(ACT, 1.0), (YOWO, 0.0)])
def test_tubes_of_one_frame_overlap_by_act_and_not_by_yowo(protocol: Protocol, ap: float) -> None:
    tube = tube_table([Track(0, 0, during(3, 3))])
    assert VideoMap(tube, tube, 1, protocol).precision(0.5).ap[0] == ap


def test_the_mean_over_thresholds() -> None:
    """A tube IoU of 0.7 passes 5 of the 10 thresholds, from 0.5 to 0.7."""
    truth = tube_table([Track(0, 0, during(0, 9)), Track(1, 1, during(0, 9))])
    tracks = tube_table([Track(0, 0, during(0, 6), 0.5), Track(1, 1, during(0, 9), 0.5)])
    result = VideoMap(truth, tracks, 3, ACT).mean_precision(AVERAGED_THRESHOLDS)
    assert len(AVERAGED_THRESHOLDS) == 10
    assert result.ap[:2] == pytest.approx([0.5, 1.0])
    assert np.isnan(result.ap[2])
    assert result.mean == pytest.approx(0.75)


def test_no_tubes() -> None:
    truth = tube_table([Track(0, 0, during(0, 9))])
    assert VideoMap(truth, tube_table([]), 2, ACT).precision(0.5).mean == 0.0
    assert VideoMap(tube_table([]), truth, 2, ACT).precision(0.5).mean is None
    assert VideoMap(tube_table([]), truth, 2, ACT).outcomes(0.5).tolist() == [4]
