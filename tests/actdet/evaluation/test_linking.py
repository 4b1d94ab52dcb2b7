"""Linking by the ACT rule: plain loops on random scenes, and small cases worked out on paper."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from actdet.evaluation.linking import link_tubelets
from actdet.evaluation.protocols import ACT_LINK, MOC_LINK, LinkRules, Suppression
from tests.actdet.evaluation import loops
from tests.actdet.evaluation.loops import Track, Tubelet
from tests.actdet.evaluation.scenes import FRAMES, random_scene, tracks_of, tubelet_table

RULES = {"act": ACT_LINK, "moc": MOC_LINK}

BOX = (0.0, 0.0, 9.0, 9.0)
FAR = (50.0, 50.0, 59.0, 59.0)


def link_by_loops(tubelets: list[Tubelet], rules: LinkRules, length: int) -> list[Track]:
    return loops.link_all(
        tubelets,
        FRAMES,
        rules.least_score,
        rules.least_length,
        threshold=rules.suppression.threshold,
        soft=rules.suppression.soft,
        overlap=rules.overlap,
        gap=length if rules.gap is None else rules.gap,
        most=rules.most,
    )


@pytest.mark.parametrize("least_length", [1, 15])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("length", [1, 2, 6])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_loops(seed: int, length: int, name: str, least_length: int) -> None:
    rules = replace(RULES[name], least_length=least_length)
    scene = random_scene(seed, length, per_frame=5)
    found = tracks_of(link_tubelets(tubelet_table(scene.tubelets, length), rules))
    expected = link_by_loops(scene.tubelets, rules, length)

    assert [(track.video, track.label, list(track.boxes)) for track in found] == [
        (track.video, track.label, list(track.boxes)) for track in expected
    ]
    for track, other in zip(found, expected, strict=True):
        assert track.score == other.score
        np.testing.assert_allclose(list(track.boxes.values()), list(other.boxes.values()), atol=1e-12)
    assert least_length == 15 or len(found) > 20


@pytest.mark.parametrize("seed", range(3))
def test_a_frame_starts_the_ten_best_alone(seed: int) -> None:
    """Many boxes of a class in a frame, none of which suppresses another one."""
    rules = replace(ACT_LINK, least_length=1, suppression=Suppression(1.0))
    scene = random_scene(seed, per_frame=40)
    found = tracks_of(link_tubelets(tubelet_table(scene.tubelets, 1), rules))
    assert found == link_by_loops(scene.tubelets, rules, 1)


def one_class(*starts: int, length: int = 1, box: loops.Box = BOX, score: float = 0.5) -> list[Tubelet]:
    return [Tubelet(0, start, 0, (box,) * length, score) for start in starts]


@pytest.mark.parametrize(("gap", "tubes"), [(4, 1), (5, 1), (6, 2)])
def test_a_gap_of_five_frames_is_bridged_by_act(gap: int, tubes: int) -> None:
    starts = [*range(5), *range(4 + gap, 20)]
    found = tracks_of(link_tubelets(tubelet_table(one_class(*starts), 1), replace(RULES["act"], least_length=1)))
    assert len(found) == tubes
    if tubes == 1:
        assert list(found[0].boxes) == list(range(20))


def test_boxes_are_interpolated_over_a_gap() -> None:
    tubelets = [*one_class(0), *one_class(4, box=(4.0, 0.0, 13.0, 9.0))]
    (track,) = tracks_of(link_tubelets(tubelet_table(tubelets, 1), replace(RULES["act"], least_length=1)))
    assert [box[0] for box in track.boxes.values()] == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(("frames", "tubes"), [(14, 0), (15, 1)])
def test_short_tubes_are_dropped(frames: int, tubes: int) -> None:
    """Tubelets of six frames: the last one starts at frame `frames` - 6."""
    tubelets = one_class(*range(frames - 5), length=6)
    assert len(link_tubelets(tubelet_table(tubelets, 6), RULES["act"])) == tubes


@pytest.mark.parametrize(("score", "act", "moc"), [(0.02, 1, 1), (0.007, 0, 1), (0.004, 0, 0)])
def test_unlikely_tubes_are_dropped(score: float, act: int, moc: int) -> None:
    table = tubelet_table(one_class(*range(20), score=score), 1)
    assert len(link_tubelets(table, RULES["act"])) == act
    assert len(link_tubelets(table, RULES["moc"])) == moc


def test_the_surer_tube_chooses_first_and_takes_the_best() -> None:
    """Two tubes, far apart; then two boxes that both could take, the better one in between."""
    rules = replace(RULES["act"], least_length=1, overlap=0.1, suppression=Suppression(1.0))
    left, right = (0.0, 0.0, 9.0, 9.0), (10.0, 0.0, 19.0, 9.0)
    between = (5.0, 0.0, 14.0, 9.0)
    tubelets = [
        Tubelet(0, 0, 0, (left,), 0.6),
        Tubelet(0, 0, 0, (right,), 0.7),
        Tubelet(0, 1, 0, (between,), 0.9),
        Tubelet(0, 1, 0, (left,), 0.5),
    ]
    found = tracks_of(link_tubelets(tubelet_table(tubelets, 1), rules))
    boxes = sorted((track.boxes for track in found), key=lambda boxes: boxes[0])
    assert boxes == [{0: left, 1: left}, {0: right, 1: between}]


def test_classes_and_videos_do_not_mix() -> None:
    chains = [(0, 0), (0, 2), (1, 0), (1, 2)]
    tubelets = [Tubelet(video, start, label, (BOX,), 0.5) for video, label in chains for start in range(20)]
    found = tracks_of(link_tubelets(tubelet_table(tubelets, 1), RULES["act"]))
    assert [(track.video, track.label) for track in found] == chains
    assert [len(track.boxes) for track in found] == [20] * 4


def test_nothing_to_link() -> None:
    assert len(link_tubelets(tubelet_table([], 3), RULES["moc"])) == 0
