"""The rule from many predictions to one answer, against a loop over the queries."""

from __future__ import annotations

import math

import pytest
import torch

from actdet.models.decision import action_scores, decide


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("batch", "queries", "classes"), [(1, 1, 2), (40, 12, 3), (7, 100, 92), (0, 4, 3)])
def test_the_surest_query_decides(batch: int, queries: int, classes: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(queries)
    logits = 4 * torch.randn(batch, queries, classes, generator=generator)
    boxes = torch.rand(batch, queries, 4, generator=generator)
    got = decide(logits, boxes, threshold)
    assert (got.label.shape, got.score.shape, got.box.shape) == ((batch,), (batch,), (batch, 4))
    for clip in range(batch):
        best = (-1.0, -1, -1)
        for query, row in enumerate(logits[clip].double().tolist()):
            total = math.fsum(map(math.exp, row))
            best = max(best, *((math.exp(row[label]) / total, query, label) for label in range(classes - 1)))
        score, query, label = best
        assert got.score[clip].item() == pytest.approx(score, rel=1e-5)
        assert got.box[clip].tolist() == boxes[clip, query].tolist()
        assert got.label[clip].item() == (label if score >= threshold else classes - 1)


def test_a_score_of_just_the_threshold_is_enough() -> None:
    logits = torch.tensor([[[0.0, -math.inf, 0.0]], [[-math.inf, 0.0, 0.0]], [[0.0, 0.0, 0.0]]])
    got = decide(logits, torch.zeros(3, 1, 4), threshold=0.5)
    assert got.score[:2].tolist() == [0.5, 0.5]
    assert got.label.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("odds", "label"), [(0.99, 1), (1.01, 0)])
def test_by_default_an_action_must_be_likelier_than_not(odds: float, label: int) -> None:
    logits = torch.tensor([[[math.log(odds), 0.0]]])
    assert decide(logits, torch.zeros(1, 1, 4)).label.tolist() == [label]


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
