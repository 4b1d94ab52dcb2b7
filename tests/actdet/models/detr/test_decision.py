"""The rules from many predictions to one answer and to a set of actions, against loops over queries and classes."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import box_convert, box_iou

from actdet.detections import Action
from actdet.models.detr.decision import action_scores, actions, decide

LEFT = (0.25, 0.5, 0.3, 0.4)
NEARLY_LEFT = (0.29, 0.5, 0.3, 0.4)
# Overlaps LEFT by an IoU of 0.46, and the mean of the two above by more than 0.5.
FAR_LEFT = (0.36, 0.5, 0.3, 0.4)
RIGHT = (0.75, 0.5, 0.3, 0.4)
POINT = (0.5, 0.5, 0.0, 0.0)


def _overlap(boxes: torch.Tensor) -> torch.Tensor:
    corners = box_convert(boxes.double(), "cxcywh", "xyxy").clamp(0, 1)
    return box_iou(corners, corners)


def _mean(probability: list[float], boxes: torch.Tensor, place: set[int]) -> list[float]:
    """The mean of the boxes of the queries in `place`, each weighted by its probability."""
    total = math.fsum(probability[query] for query in place)
    rows = boxes.double().tolist()
    return [math.fsum(probability[query] * rows[query][side] for query in place) / total for side in range(4)]


@pytest.mark.parametrize("weight", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("batch", "queries", "classes"), [(1, 1, 2), (40, 12, 3), (7, 100, 92), (0, 4, 3)])
def test_the_most_expected_class_and_where_its_surest_queries_say(
    batch: int, queries: int, classes: int, threshold: float, weight: float
) -> None:
    generator = torch.Generator().manual_seed(queries)
    logits = 4 * torch.randn(batch, queries, classes, generator=generator)
    logits[..., -1] += 4
    boxes = torch.rand(batch, queries, 4, generator=generator)
    got = decide(logits, boxes, no_object_weight=weight, threshold=threshold)
    assert (got.label.shape, got.score.shape, got.box.shape) == ((batch,), (batch,), (batch, 4))
    for clip in range(batch):
        rows = []
        for row in logits[clip].double().tolist():
            actions = [math.exp(logit) for logit in row[:-1]]
            total = math.fsum(actions) + math.exp(row[-1]) / weight
            rows.append([action / total for action in actions])
        expected = [math.fsum(column) for column in zip(*rows, strict=True)]
        label = max(range(classes - 1), key=expected.__getitem__)
        surest = max(range(queries), key=lambda query: rows[query][label])
        overlap = _overlap(boxes[clip])
        place = {query for query in range(queries) if query == surest or overlap[surest, query] >= 0.5}
        assert got.score[clip].item() == pytest.approx(min(expected[label], 1.0), rel=1e-5)
        assert got.box[clip].tolist() == pytest.approx(
            _mean([row[label] for row in rows], boxes[clip], place), abs=1e-6
        )
        assert got.label[clip].item() == (label if expected[label] >= threshold else classes - 1)


def test_queries_that_share_an_action_count_together() -> None:
    """Three queries of 0.2, 0.25 and 0.15, none enough alone, make an action at the place of the surest."""
    logits = torch.tensor([[[p, 1 - p] for p in (0.2, 0.25, 0.15)]]).log()
    boxes = torch.tensor([[LEFT, RIGHT, LEFT]])
    got = decide(logits, boxes, no_object_weight=1.0)
    assert got.label.tolist() == [0]
    assert got.score.item() == pytest.approx(0.6)
    assert got.box.tolist() == [list(map(pytest.approx, RIGHT))]
    assert decide(logits[:, 1:], boxes[:, 1:], no_object_weight=1.0).label.tolist() == [1]


@pytest.mark.parametrize(("odds", "label"), [(9.9, 1), (10.1, 0)])
def test_the_weight_of_no_object_in_training_is_taken_back(odds: float, label: int) -> None:
    """Trained with a weight of 0.1, odds of 10 to 1 for an action mean that there is one in half of such clips."""
    logits = torch.tensor([[[math.log(odds), 0.0]]])
    assert decide(logits, torch.zeros(1, 1, 4), no_object_weight=0.1).label.tolist() == [label]


def test_a_score_of_just_the_threshold_is_enough() -> None:
    logits = torch.tensor([[[0.0, -math.inf, 0.0]], [[-math.inf, 0.0, 0.0]], [[0.0, 0.0, 0.0]]])
    got = decide(logits, torch.zeros(3, 1, 4), no_object_weight=1.0, threshold=0.5)
    assert got.score[:2].tolist() == [0.5, 0.5]
    assert got.label.tolist() == [0, 1, 2]


def test_no_object_is_never_the_likeliest_action() -> None:
    score, label = action_scores(torch.tensor([[[0.0, 1.0, 9.0], [2.0, 1.0, -9.0]]]))
    assert label.tolist() == [[1, 0]]
    exact = [math.e / (1 + math.e + math.exp(9)), math.exp(2) / (math.exp(2) + math.e + math.exp(-9))]
    assert score[0].tolist() == pytest.approx(exact, rel=1e-5)


def test_scores_take_any_leading_dimensions() -> None:
    logits = torch.randn(4, 2, 12, 3, generator=torch.Generator().manual_seed(0))
    score, label = action_scores(logits)
    assert score.shape == label.shape == (4, 2, 12)
    one, other = action_scores(logits[2, 1])
    assert torch.equal(score[2, 1], one)
    assert torch.equal(label[2, 1], other)


def _actions_of_a_clip(logits: list[list[float]], boxes: torch.Tensor, weight: float, threshold: float) -> list[Action]:
    """The definition, by exponentials of single numbers and torchvision's overlap, without an ordering trick."""
    queries = range(len(logits))
    table = []
    for row in logits:
        actions_of_row = [math.exp(logit) for logit in row[:-1]]
        total = math.fsum(actions_of_row) + math.exp(row[-1]) / weight
        table.append([action / total for action in actions_of_row])
    overlap = _overlap(boxes)

    found = []
    for label in range(len(logits[0]) - 1):
        expected = math.fsum(table[query][label] for query in queries)
        free = set(queries)
        rank = 0
        while free and expected - rank >= threshold:
            surest = max(free, key=lambda query: table[query][label])
            place = {query for query in free if query == surest or overlap[surest, query] >= 0.5}
            free -= place
            if rank and math.fsum(table[query][label] for query in place) < threshold:
                continue
            box = torch.tensor(_mean([row[label] for row in table], boxes, place))
            corners = box_convert(box, "cxcywh", "xyxy").clamp(0, 1)
            found.append((expected - rank, label, corners.tolist()))
            rank += 1
    return [Action(label, min(score, 1.0), tuple(box)) for score, label, box in sorted(found, key=lambda f: -f[0])]


@pytest.mark.parametrize("weight", [0.1, 1.0])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("batch", "queries", "classes"), [(1, 1, 2), (60, 12, 3), (8, 40, 9), (0, 4, 3)])
def test_the_set_of_actions_is_what_the_definition_says(
    batch: int, queries: int, classes: int, threshold: float, weight: float
) -> None:
    generator = torch.Generator().manual_seed(queries)
    logits = 4 * torch.randn(batch, queries, classes, generator=generator)
    logits[..., -1] += 3
    boxes = torch.rand(batch, queries, 4, generator=generator)
    # Four places at corners of the picture, so that boxes overlap and stick out.
    boxes[..., :2] = boxes[..., :2].round()
    got = actions(logits, boxes, no_object_weight=weight, threshold=threshold)
    assert len(got) == batch
    for clip, said in enumerate(got):
        wanted = _actions_of_a_clip(logits[clip].double().tolist(), boxes[clip], weight, threshold)
        assert [action.label for action in said] == [action.label for action in wanted]
        for action, other in zip(said, wanted, strict=True):
            assert action.score == pytest.approx(other.score, abs=1e-5)
            assert action.box == pytest.approx(other.box, abs=1e-6)
            assert 0 <= action.score <= 1
            assert 0 <= action.box[0] <= action.box[2] <= 1
            assert 0 <= action.box[1] <= action.box[3] <= 1


def test_the_surest_action_is_what_decide_says() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(200, 12, 4, generator=generator)
    logits[..., -1] += 6
    boxes = 0.25 + 0.5 * torch.rand(200, 12, 4, generator=generator)
    boxes[..., 2:] = 0.5
    decision = decide(logits, boxes, no_object_weight=0.1)
    got = actions(logits, boxes, no_object_weight=0.1)
    assert {len(said) for said in got} >= {0, 1, 2, 3}
    for clip, said in enumerate(got):
        if decision.label[clip] == 3:
            assert said == ()
            continue
        assert said[0].label == decision.label[clip].item()
        assert said[0].score == decision.score[clip].item()
        assert said[0].box == pytest.approx(box_convert(decision.box[clip], "cxcywh", "xyxy").tolist())


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        # Three queries at one place are one action, however much they add up to.
        ([(0.9, LEFT), (0.9, LEFT), (0.7, LEFT)], [(1.0, LEFT)]),
        # Their box is the mean of theirs, weighted: 0.25 and 0.29 by 3 to 1.
        ([(0.6, LEFT), (0.2, NEARLY_LEFT), (0.1, RIGHT)], [(0.9, (0.26, 0.5, 0.3, 0.4))]),
        # One that overlaps the mean of a place, but not the surest box there, has no part in it.
        ([(0.5, LEFT), (0.4, NEARLY_LEFT), (0.3, FAR_LEFT)], [(1.0, (0.25 + 0.04 * 4 / 9, 0.5, 0.3, 0.4))]),
        ([(0.9, LEFT), (0.8, RIGHT)], [(1.0, LEFT), (0.7, RIGHT)]),
        # Two shares of one action are at different places: the surer place is named alone.
        ([(0.4, LEFT), (0.6, RIGHT)], [(1.0, RIGHT)]),
        # What is left beside the first does not make a second at any one place.
        ([(0.9, LEFT), (0.3, RIGHT), (0.3, POINT)], [(1.0, LEFT)]),
        ([(0.9, LEFT), (0.3, RIGHT), (0.3, RIGHT)], [(1.0, LEFT), (0.5, RIGHT)]),
        # A weak place is passed over for one that is made of several queries.
        ([(0.9, LEFT), (0.35, POINT), (0.3, RIGHT), (0.3, RIGHT)], [(1.0, LEFT), (0.85, RIGHT)]),
        ([(0.3, LEFT), (0.1, RIGHT)], []),
        # Boxes without an area are not taken for one.
        ([(0.9, POINT), (0.9, POINT)], [(1.0, POINT), (0.8, POINT)]),
    ],
)
def test_boxes_of_one_class(
    said: list[tuple[float, tuple[float, ...]]], wanted: list[tuple[float, tuple[float, ...]]]
) -> None:
    logits = torch.tensor([[[p, 1 - p] for p, _ in said]]).log()
    (got,) = actions(logits, torch.tensor([[box for _, box in said]]), no_object_weight=1.0, threshold=0.499)
    assert [action.label for action in got] == [0] * len(wanted)
    assert [action.score for action in got] == pytest.approx([score for score, _ in wanted], abs=1e-6)
    corners = box_convert(torch.tensor([box for _, box in wanted]).view(-1, 4), "cxcywh", "xyxy").tolist()
    assert [list(action.box) for action in got] == [pytest.approx(box, abs=1e-6) for box in corners]


def test_actions_of_different_classes_may_be_at_one_place_and_the_most_expected_is_first() -> None:
    logits = torch.tensor([[[0.05, 0.9, 0.05], [0.7, 0.2, 0.1], [0.05, 0.9, 0.05]]]).log()
    (got,) = actions(logits, torch.tensor([[LEFT, LEFT, RIGHT]]), no_object_weight=1.0)
    assert [action.label for action in got] == [1, 1, 0]
    assert [action.score for action in got] == pytest.approx([1.0, 1.0, 0.8])


def test_half_precision_and_gradients_are_no_obstacle() -> None:
    logits = torch.tensor([[[4.0, 0.0]]], dtype=torch.bfloat16, requires_grad=True)
    ((action,),) = actions(logits, torch.tensor([[LEFT]], dtype=torch.bfloat16), no_object_weight=1.0)
    assert action.score == pytest.approx(1 / (1 + math.exp(-4)), abs=1e-3)
    assert action.box == pytest.approx((0.1, 0.3, 0.4, 0.7), abs=5e-3)


def test_where_nothing_is_probable_the_box_is_still_a_number() -> None:
    logits = torch.tensor([[[-1e9, 0.0], [-1e9, 0.0]]])
    got = decide(logits, torch.tensor([[LEFT, NEARLY_LEFT]]), no_object_weight=0.1)
    assert got.label.tolist() == [1]
    assert got.score.tolist() == [0.0]
    assert got.box[0].tolist() == pytest.approx([0.27, 0.5, 0.3, 0.4])
