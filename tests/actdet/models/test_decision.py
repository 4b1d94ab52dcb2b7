"""The rule from many predictions to one answer, against a loop over queries and classes."""

from __future__ import annotations

import math

import pytest
import torch

from actdet.models.decision import action_scores, decide


@pytest.mark.parametrize("weight", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("batch", "queries", "classes"), [(1, 1, 2), (40, 12, 3), (7, 100, 92), (0, 4, 3)])
def test_the_most_expected_class_and_its_surest_query(
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
        query = max(range(queries), key=lambda q: rows[q][label])
        assert got.score[clip].item() == pytest.approx(min(expected[label], 1.0), rel=1e-5)
        assert got.box[clip].tolist() == boxes[clip, query].tolist()
        assert got.label[clip].item() == (label if expected[label] >= threshold else classes - 1)


def test_queries_that_share_an_action_count_together() -> None:
    """Three queries of 0.2, 0.25 and 0.15 make an action where none would alone, and the surest gives the box."""
    logits = torch.tensor([[[p, 1 - p] for p in (0.2, 0.25, 0.15)]]).log()
    boxes = torch.arange(12.0).view(1, 3, 4)
    got = decide(logits, boxes, no_object_weight=1.0)
    assert got.label.tolist() == [0]
    assert got.score.item() == pytest.approx(0.6)
    assert got.box.tolist() == [[4.0, 5.0, 6.0, 7.0]]
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
