"""The online linker: what it tells never changes by what comes later, and in the end it equals the linking of files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from actdet.errors import ActdetError
from actdet.evaluation.arrays import TubeletBoxes, join_tubes
from actdet.evaluation.linking import link_tubelets
from actdet.evaluation.online import Detections, OnlineLinker, OpenTube
from actdet.evaluation.protocols import ACT_LINK, MOC_LINK, LinkRules
from tests.actdet.evaluation.scenes import FRAMES, random_scene, tracks_of, tubelet_table

RULES = [replace(ACT_LINK, least_length=1), replace(MOC_LINK, least_length=1)]


def stream(seed: int, length: int = 1) -> TubeletBoxes:
    """The detections of one video."""
    table = tubelet_table(random_scene(seed, length, videos=1, per_frame=8).tubelets, length)
    order = np.argsort(table.starts, kind="stable")
    return table.take(order)


def at(table: TubeletBoxes, frame: int) -> Detections:
    rows = table.starts == frame
    return Detections(table.labels[rows], table.boxes[rows], table.scores[rows])


def shown(tubes: list[OpenTube]) -> list[tuple[object, ...]]:
    return [(tube.number, tube.label, tube.last_frame, tube.box.tolist(), tube.score) for tube in tubes]


def run(linker: OnlineLinker, table: TubeletBoxes, until: int) -> list[tuple[list[int], list[tuple[object, ...]]]]:
    """What is told in each frame, and the state after it."""
    told = []
    for frame in range(until):
        numbers = linker.update(frame, at(table, frame)).tolist()
        told.append((numbers, shown(linker.open_tubes)))
    return told


@pytest.mark.parametrize("rules", RULES, ids=["act", "moc"])
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("cut", [1, 9, 17])
def test_the_state_depends_on_the_past_alone(cut: int, length: int, rules: LinkRules) -> None:
    """Two streams that are the same up to a frame and differ after it."""
    first = stream(1, length)
    second = stream(2, length)
    spliced = TubeletBoxes(
        *(
            np.concatenate([getattr(first, name)[first.starts < cut], getattr(second, name)[second.starts >= cut]])
            for name in ("videos", "starts", "labels", "boxes", "scores")
        )
    )
    one = run(OnlineLinker(rules, length), first, FRAMES)
    other = run(OnlineLinker(rules, length), spliced, FRAMES)
    assert one[:cut] == other[:cut]
    assert one[cut:] != other[cut:]


@pytest.mark.parametrize("rules", [ACT_LINK, MOC_LINK, *RULES])
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_the_end_equals_the_linking_of_a_file(seed: int, length: int, rules: LinkRules) -> None:
    table = stream(seed, length)
    linker = OnlineLinker(rules, length)
    run(linker, table, FRAMES)
    assert tracks_of(linker.finish().tubes) == tracks_of(link_tubelets(table, rules))


@pytest.mark.parametrize("seed", range(3))
def test_closed_tubes_are_handed_over_once_and_forgotten(seed: int) -> None:
    table = stream(seed)
    linker = OnlineLinker(RULES[0])
    parts = []
    numbers = []
    for frame in range(FRAMES):
        linker.update(frame, at(table, frame))
        closed = linker.take_closed()
        parts.append(closed.tubes)
        numbers += closed.numbers.tolist()
        assert not {tube.number for tube in linker.open_tubes} & set(numbers)
    last = linker.finish()
    every = join_tubes([*parts, last.tubes])
    numbers += last.numbers.tolist()
    assert len(set(numbers)) == len(numbers)

    order = np.lexsort((numbers, every.labels))
    assert tracks_of(every.take(order)) == tracks_of(link_tubelets(table, RULES[0]))
    assert len(linker.finish().tubes) == 0


def test_a_detection_that_is_suppressed_belongs_to_no_tube() -> None:
    linker = OnlineLinker()
    boxes = np.array([[0.0, 0, 9, 9], [0, 0, 9, 8], [50, 50, 60, 60]])
    numbers = linker.update(0, Detections(np.zeros(3, dtype=int), boxes, np.array([0.4, 0.9, 0.2])))
    assert numbers.tolist() == [-1, 0, 1]
    assert linker.update(1, Detections(np.zeros(1, dtype=int), boxes[:1], np.array([0.5]))).tolist() == [0]
    assert [(tube.number, tube.last_frame) for tube in linker.open_tubes] == [(0, 1), (1, 0)]
    assert linker.open_tubes[0].score == pytest.approx(0.7)


def test_tubes_end_after_their_gap_even_if_frames_are_left_out() -> None:
    linker = OnlineLinker(RULES[0])
    box = np.array([[0.0, 0, 9, 9]])
    detections = Detections(np.zeros(1, dtype=int), box, np.ones(1))
    assert linker.update(0, detections).tolist() == [0]
    assert linker.update(5, detections).tolist() == [0]
    assert linker.update(11, detections).tolist() == [1]


@pytest.mark.parametrize("frame", [3, 2])
def test_frames_must_ascend(frame: int) -> None:
    linker = OnlineLinker()
    nothing = Detections(np.zeros(0, dtype=int), np.zeros((0, 4)), np.zeros(0))
    linker.update(3, nothing)
    with pytest.raises(ActdetError, match="ascend"):
        linker.update(frame, nothing)


def test_nan_is_refused() -> None:
    with pytest.raises(ActdetError, match="not finite"):
        OnlineLinker().update(0, Detections(np.zeros(1, dtype=int), np.zeros((1, 4)), np.array([np.nan])))


def test_nothing_ever_came() -> None:
    assert len(OnlineLinker().finish().tubes) == 0
    assert len(OnlineLinker().take_closed().tubes) == 0
