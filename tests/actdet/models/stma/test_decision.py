"""What the rule makes of maps that know everything, of uncertain ones, and of several peaks on one actor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torchvision.ops import box_convert

from actdet.models.stma.config import StmaConfig, StmaLoss
from actdet.models.stma.decision import assess, detections, tubelets
from actdet.models.stma.maps import SnippetMaps, snippet_starts
from tests.actdet.models.stma.scenes import SURE, actors, perfect_maps

SMALL = StmaConfig(image_size=64, frames=8, snippet=3, class_names=("a", "b", "c"))
FORMS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "the middle snippet": {"snippets": "middle"},
    "the last frame is key": {"key": "last", "snippets": "last"},
    "sides in the key frame": {"moving_sizes": False},
    "a map for each class": {"class_agnostic": False, "motion_excitation": False, "aggregation": False},
    "one frame": {"snippet": 1},
    "the whole clip": {"snippet": 8},
}
ALL_FORMS = pytest.mark.parametrize("config", [replace(SMALL, **each) for each in FORMS.values()], ids=[*FORMS])


@ALL_FORMS
def test_maps_that_know_everything_give_the_truth_back(config: StmaConfig) -> None:
    targets = actors(config, (2, 0, 1, 3))
    found = detections(perfect_maps(config, targets), config, threshold=0.5)
    starts = snippet_starts(config)
    assert [part.first for part in found.tracks] == list(starts)
    for clip, count in enumerate(targets.counts.tolist()):
        for part in found.tracks:
            scores = part.scores[clip]
            assert scores.shape == (10, config.snippet, 3)
            sure = (scores[:, 0] > 0.5).nonzero().tolist()
            assert sorted(label for _, label in sure) == sorted(targets.labels[clip, :count].tolist())
            for row, label in sure:
                # The same in all frames.
                assert (scores[row, :, label] == scores[row, 0, label]).all()
                frames = slice(part.first, part.first + config.snippet)
                wanted = box_convert(targets.boxes[clip, :count, frames], "cxcywh", "xyxy")
                distances = (wanted - part.boxes[clip, row]).abs().amax((1, 2))
                assert distances.min() < 1e-5
                assert targets.labels[clip, int(distances.argmin())] == label

        assert (found.decision.label[clip] == 3) == (count == 0)
        assert bool(found.actions[clip]) == (count > 0)


def test_the_first_action_is_the_decided_one() -> None:
    config = replace(SMALL, snippets="middle")
    maps = perfect_maps(config, actors(config, (3,), seed=4))
    dimmed = maps.centers - 0.02 * torch.arange(maps.centers[0].numel()).view_as(maps.centers[0]) / SURE
    found = detections(maps._replace(centers=dimmed), config, threshold=0.5)
    scores = [action.score for action in found.actions[0]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 3
    first = found.actions[0][0]
    assert first.label == found.decision.label[0]
    assert first.score == pytest.approx(found.decision.score[0].item())
    assert first.box == pytest.approx(box_convert(found.decision.box[0], "cxcywh", "xyxy").tolist(), abs=1e-6)


def test_two_peaks_on_one_actor_count_once() -> None:
    config = replace(SMALL, snippets="middle")
    maps = perfect_maps(config, actors(config, (1,)))
    line, column = divmod(int(maps.centers[0, 0, 0].argmax()), 16)
    other = (line + 2, column)
    # What is a bit lower, and less sure, has the same box.
    maps.centers[0, 0, 0][other] = 2.0
    maps.movement[0, 0, :, :, other[0], other[1]] = maps.movement[0, 0, :, :, line, column] - torch.tensor([0.0, 2.0])
    label = maps.classes[0, 0, :, line // 4, column // 4].argmax()
    maps.classes[0, 0, label, other[0] // 4, other[1] // 4] = SURE
    scores = tubelets(maps, config).scores[0, 0]
    assert (scores[:, label] > 0.5).sum() == 1
    assert len(detections(maps, config, threshold=0.5).actions[0]) == 1


def test_the_score_is_the_probability_of_the_center_times_that_of_the_class() -> None:
    config = replace(SMALL, snippets="middle")
    maps = perfect_maps(config, actors(config, (1,)))
    peak = maps.centers.argmax()
    maps.centers.view(-1)[peak] = 0.3
    maps.classes[:] = torch.tensor([0.2, 1.0, -0.5])[:, None, None]
    got = detections(maps, config, threshold=0.2)
    wanted = torch.tensor(0.3).sigmoid() * torch.tensor([0.2, 1.0, -0.5]).softmax(0)
    assert got.decision.score[0] == pytest.approx(wanted[1].item())
    assert got.decision.likeliest[0] == 1
    assert [action.label for action in got.actions[0]] == [1]
    assert detections(maps, config, threshold=0.9).decision.label[0] == 3


@ALL_FORMS
def test_an_evaluation_of_what_is_right_finds_everything(config: StmaConfig) -> None:
    targets = actors(config, (2, 0, 1))
    loss = StmaLoss(movement_area="center", size_area="center")
    assessment = assess(perfect_maps(config, targets), targets, config, loss, threshold=0.5)
    assert torch.equal(assessment.targets.labels, targets.labels)
    for clip, count in enumerate(targets.counts.tolist()):
        assert (assessment.matched[clip, count:] == -1).all()
        for row in range(count):
            candidate = int(assessment.matched[clip, row])
            assert assessment.candidates.label[clip, candidate] == targets.labels[clip, row]
    # Sure answers in the right places cost nothing.
    for name, value in assessment.losses.items():
        assert value == pytest.approx(0, abs=1e-3), name


def test_maps_of_nothing_have_no_action() -> None:
    targets = actors(SMALL, (0, 0))
    empty = SnippetMaps(*(maps.clone() for maps in perfect_maps(SMALL, targets)))
    found = detections(empty, SMALL, threshold=0.5)
    assert found.actions == [(), ()]
    assert found.decision.label.tolist() == [3, 3]
    assert found.decision.score.max() < 1e-4
