"""The rule that turns slots into actions, by loops and on paper, and the contract of the families that it keeps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from actdet.detections import Action
from actdet.models.family import Tracks
from actdet.models.tubelet.config import TubeletLoss
from actdet.models.tubelet.decision import _spans, assess, detections, probabilities
from actdet.models.tubelet.slots import FinalSlots
from tests.actdet.models.tubelet.test_losses import SHAPES, losses_by_loops, matched_by_loops, problem

WEIGHTS = TubeletLoss(no_object_weight=0.2)
BOTH_KINDS = pytest.mark.parametrize("multi_label", [False, True], ids=["softmax", "sigmoid"])


class Span(NamedTuple):
    """The action that a slot would stand for."""

    score: float
    box: tuple[float, ...]


def spans_by_loops(likely: list[float], boxes: list[list[float]]) -> list[Span]:
    """The frames about a peak in which the probability is at least half of it; of each of several equal peaks."""
    found = []
    for when, value in enumerate(likely):
        if value < max(likely):
            continue
        first = when
        while first > 0 and likely[first - 1] >= value / 2:
            first -= 1
        last = when
        while last + 1 < len(likely) and likely[last + 1] >= value / 2:
            last += 1
        inside = range(first, last + 1)
        low = [min(boxes[frame][edge] for frame in inside) for edge in (0, 1)]
        high = [max(boxes[frame][edge] for frame in inside) for edge in (2, 3)]
        found.append(Span(sum(likely[frame] for frame in inside) / len(inside), (*low, *high)))
    return found


def random_corners(*shape: int, seed: int) -> Tensor:
    low, side = torch.rand(2, *shape, 2, generator=torch.Generator().manual_seed(seed))
    return torch.cat([low, (low + side).clamp(max=1)], -1)


@pytest.mark.parametrize("values", [3, 8, 10**6], ids=["many ties", "some ties", "no ties"])
@pytest.mark.parametrize("frames", [1, 2, 8, 17])
def test_an_action_lasts_while_it_is_half_as_sure_as_at_its_peak(frames: int, values: int) -> None:
    """Probabilities are multiples of 1/`values`, so that many are equal, or just half as large."""
    generator = torch.Generator().manual_seed(frames)
    scores = torch.randint(0, values + 1, (3, 4, frames, 3), generator=generator) / values
    tracks = Tracks(scores, random_corners(3, 4, frames, seed=1))
    spans = _spans(tracks)
    assert spans.score.shape == (3, 4, 3)
    assert spans.box.shape == (3, 4, 3, 4)
    for clip, slot, label in np.ndindex(3, 4, 3):
        allowed = spans_by_loops(scores[clip, slot, :, label].tolist(), tracks.boxes[clip, slot].tolist())
        got = Span(spans.score[clip, slot, label].item(), tuple(spans.box[clip, slot, label].tolist()))
        assert any(
            got.score == pytest.approx(span.score, abs=1e-6) and got.box == pytest.approx(span.box) for span in allowed
        )


@pytest.mark.parametrize(
    ("likely", "inside"),
    [
        ([0.8], [0]),
        ([0.2, 0.2, 0.2], [0, 1, 2]),
        ([0.0, 0.0], [0, 1]),
        ([0.1, 0.5, 1.0, 0.75, 0.25], [1, 2, 3]),
        ([0.5, 0.25, 0.125], [0, 1]),
        ([0.125, 0.25, 0.5], [1, 2]),
        ([1.0, 0.25, 0.75, 0.75], [0]),
        ([0.5, 0.0, 0.5, 0.75, 0.5, 0.0, 0.5], [2, 3, 4]),
    ],
)
def test_times_of_known_actions(likely: list[float], inside: list[int]) -> None:
    """Each frame has a box of its own, a thousandth to the right of the one before."""
    frames = len(likely)
    x = torch.arange(frames) / 1000
    boxes = torch.stack([x, x * 0 + 0.2, x + 0.3, x * 0 + 0.6], -1)[None, None]
    spans = _spans(Tracks(torch.tensor(likely)[None, None, :, None], boxes))
    assert spans.score.item() == pytest.approx(sum(likely[frame] for frame in inside) / len(inside))
    wanted = [inside[0] / 1000, 0.2, inside[-1] / 1000 + 0.3, 0.6]
    assert spans.box[0, 0, 0].tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("weight", [0.1, 1.0, 3.0])
def test_probabilities_take_the_weight_of_no_action_back(weight: float) -> None:
    logits = 3 * torch.randn(2, 4, 5, 4, generator=torch.Generator().manual_seed(0))
    got = probabilities(logits, replace(WEIGHTS, no_object_weight=weight), multi_label=False)
    assert got.shape == (2, 4, 5, 3)
    for place in np.ndindex(2, 4, 5):
        shares = [math.exp(value) for value in logits[place].tolist()]
        shares[-1] /= weight
        assert got[place].tolist() == pytest.approx([share / sum(shares) for share in shares[:-1]], rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_of_several_labels_are_each_for_itself(dtype: torch.dtype) -> None:
    logits = (3 * torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(0))).to(dtype)
    got = probabilities(logits, WEIGHTS, multi_label=True)
    assert got.dtype == torch.float32
    wanted = [1 / (1 + math.exp(-value)) for value in logits.flatten().tolist()]
    assert got.flatten().tolist() == pytest.approx(wanted, rel=1e-4)


# The contract of the families


def random_final(multi_label: bool, *, clips: int = 4, frames: int = 6, slots: int = 5, classes: int = 3) -> FinalSlots:
    """Some boxes reach beyond the picture."""
    generator = torch.Generator().manual_seed(7)
    logits = 2 * torch.randn(clips, slots, frames, classes + (not multi_label), generator=generator)
    return FinalSlots(logits, torch.rand(clips, slots, frames, 4, generator=generator))


def corners(box: list[float]) -> list[float]:
    x, y, width, height = box
    edges = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return [min(max(edge, 0.0), 1.0) for edge in edges]


@BOTH_KINDS
@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.6, 1.0])
def test_detections_keep_the_contract(threshold: float, multi_label: bool) -> None:
    final = random_final(multi_label)
    decision, found, (tracks,) = detections(final, WEIGHTS, multi_label=multi_label, threshold=threshold)
    likely = probabilities(final.logits, WEIGHTS, multi_label=multi_label)

    assert tracks.first == 0
    assert tracks.scores.shape == (4, 5, 6, 3)
    assert tracks.boxes.shape == (4, 5, 6, 4)
    for clip, slot, frame in np.ndindex(4, 5, 6):
        assert tracks.scores[clip, slot, frame].tolist() == likely[clip, slot, frame].tolist()
        wanted = corners(final.boxes[clip, slot, frame].tolist())
        assert tracks.boxes[clip, slot, frame].tolist() == pytest.approx(wanted, abs=1e-6)

    assert [field.shape for field in decision] == [(4,), (4,), (4, 4), (4,)]
    assert len(found) == 4
    for clip in range(4):
        wanted_actions = []
        for slot, label in np.ndindex(5, 3):
            of_class = tracks.scores[clip, slot, :, label].tolist()
            (span,) = spans_by_loops(of_class, tracks.boxes[clip, slot].tolist())
            wanted_actions.append(Action(label, span.score, span.box))  # type: ignore[arg-type]
        wanted_actions.sort(key=lambda action: -action.score)
        surest = wanted_actions[0]

        passed = [action for action in wanted_actions if action.score >= threshold]
        assert [action.label for action in found[clip]] == [action.label for action in passed]
        for got, action in zip(found[clip], passed, strict=True):
            assert got.score == pytest.approx(action.score, abs=1e-6)
            assert got.box == pytest.approx(action.box, abs=1e-6)

        assert decision.likeliest[clip] == surest.label
        assert decision.score[clip].item() == pytest.approx(surest.score, abs=1e-6)
        assert corners(decision.box[clip].tolist()) == pytest.approx(surest.box, abs=1e-6)
        assert decision.label[clip] == (surest.label if surest.score >= threshold else 3)
        if found[clip]:
            first = found[clip][0]
            assert (first.label, first.score) == (decision.label[clip].item(), decision.score[clip].item())
        else:
            assert decision.label[clip] == 3
    numbers = [len(of_clip) for of_clip in found]
    assert threshold != 0 or numbers == [15] * 4
    assert threshold != 1 or numbers == [0] * 4


@pytest.mark.parametrize(("clips", "frames", "slots", "classes"), [(1, 1, 1, 1), (2, 16, 10, 24), (3, 8, 1, 2)])
@BOTH_KINDS
def test_detections_of_other_sizes(clips: int, frames: int, slots: int, classes: int, multi_label: bool) -> None:
    final = random_final(multi_label, clips=clips, frames=frames, slots=slots, classes=classes)
    decision, found, (tracks,) = detections(final, WEIGHTS, multi_label=multi_label, threshold=0.0)
    assert tracks.scores.shape == (clips, slots, frames, classes)
    assert [len(of_clip) for of_clip in found] == [slots * classes] * clips
    for clip in range(clips):
        assert found[clip][0].score == decision.score[clip].item()
        assert found[clip][0].label == decision.label[clip].item()


@BOTH_KINDS
def test_two_slots_may_do_the_same(multi_label: bool) -> None:
    """What actors do is not merged: each is an action, the surer one first."""
    logits = torch.full((1, 2, 4, 2 + (not multi_label)), -9.0)
    logits[:, 0, :, 1] = 3.0
    logits[:, 1, :, 1] = 5.0
    left, right = [0.25, 0.5, 0.25, 0.5], [0.75, 0.5, 0.25, 0.5]
    boxes = torch.tensor([left, right])[:, None].expand(1, 2, 4, 4)
    _, (found,), _ = detections(FinalSlots(logits, boxes), WEIGHTS, multi_label=multi_label, threshold=0.5)
    assert [action.label for action in found] == [1, 1]
    assert found[0].box == pytest.approx((0.625, 0.25, 0.875, 0.75))
    assert found[1].box == pytest.approx((0.125, 0.25, 0.375, 0.75))


@BOTH_KINDS
@pytest.mark.parametrize("matching", ["tubelet", "frame"])
@pytest.mark.parametrize("name", ["usual", "key frames", "no actors", "more actors than slots"])
def test_an_assessment_compares_what_training_compares(name: str, matching: str, multi_label: bool) -> None:
    config = replace(WEIGHTS, matching=matching)
    given = problem(replace(SHAPES[name], layers=1), multi_label=multi_label)
    final = FinalSlots(*(value[0] for value in given.slots[:2]))
    found = assess(final, given.targets, config, multi_label=multi_label, threshold=0.5)

    answers = detections(final, config, multi_label=multi_label, threshold=0.5)
    assert found.detections.actions == answers.actions
    assert all(map(torch.equal, found.detections.decision, answers.decision))
    (tracks,) = found.detections.tracks
    clips, slots = tracks.scores.shape[:2]
    assert not any(tensor.requires_grad for tensor in (tracks.scores, tracks.boxes, *found.candidates))

    assert found.candidates.label.shape == found.candidates.confidence.shape == (clips, slots)
    for clip, slot in np.ndindex(clips, slots):
        boxes = tracks.boxes[clip, slot].tolist()
        spans = [spans_by_loops(of_class, boxes)[0] for of_class in tracks.scores[clip, slot].T.tolist()]
        surest = max(range(len(spans)), key=lambda label: spans[label].score)
        assert found.candidates.label[clip, slot] == surest
        assert found.candidates.confidence[clip, slot].item() == pytest.approx(spans[surest].score, abs=1e-6)
        assert corners(found.candidates.box[clip, slot].tolist()) == pytest.approx(spans[surest].box, abs=1e-6)

    matched = matched_by_loops(given, config, multi_label)
    assert found.matched.shape == given.targets.labels.shape
    for clip, actor in np.ndindex(*found.matched.shape):
        of_frames = set(matched[0, clip, actor].tolist()) - {-1}
        assert found.matched[clip, actor].item() in (of_frames or {-1})
    for one, other in zip(found.targets, given.targets.clip_boxes, strict=True):
        assert torch.equal(one, other)

    wanted = losses_by_loops(given, matched, config, multi_label)
    expected = {name: value.item() for name, value in wanted.items()} | {"denoising": 0.0, "auxiliary": 0.0}
    assert found.losses == pytest.approx(expected, rel=1e-4, abs=1e-6)
