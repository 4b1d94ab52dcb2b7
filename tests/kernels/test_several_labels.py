"""Targets with several labels, in cost, matching, loss and criterion: against other libraries in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from actdet_kernels import denoising_queries, match, pairwise_cost, repeat_targets, set_loss
from actdet_kernels.detr import HungarianMatcher, SetCriterion
from torch import Tensor

from tests.kernels.checks import check_cost, check_loss, on_device, several_labels, sigmoid_cost_case
from tests.kernels.device import DEVICE, KINDS, POISONED
from tests.kernels.oracles import LossCase, criterion, labels_of, loss_case, sigmoid_class_loss

pytestmark = POISONED
SIGMOID = ["focal", "varifocal", "quality_focal"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("class_cost", SIGMOID)
@pytest.mark.parametrize("frames", [None, 2])
@pytest.mark.parametrize(("queries", "counts", "most"), [(6, [4, 0, 2], 3), (3, [4, 1, 0], 2)])
def test_the_cost_adds_up_over_the_labels_of_a_target(
    queries: int, counts: list[int], most: int, frames: int | None, class_cost: Any, kind: Any
) -> None:
    case, wanted = sigmoid_cost_case(queries, counts, frames, most, class_cost, 0.25, 2.0)
    check_cost(case, wanted, kind, class_cost=class_cost)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("class_loss", SIGMOID)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", [((2,), 12, 4, [1, 0, 3], 3), ((), 5, 65, [7, 3], 9)], ids=str)
def test_the_loss_wants_all_labels_of_a_target(case: LossCase, weighted: bool, class_loss: Any, kind: Any) -> None:
    logits, boxes, targets, matched = loss_case(*case, "focal")
    several = several_labels(targets, case[2], 3)
    weights = torch.linspace(0, 2, case[2], dtype=torch.float64) if weighted else None

    def terms(logits: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        cls = sigmoid_class_loss(logits, boxes, several, matched, class_loss, 0.25, 2.0, weights)
        return cls, *criterion(logits.detach(), boxes, targets, matched, 0.1, "focal")[1:]

    given = None if weights is None else weights.to(DEVICE)
    check_loss((logits, boxes, several, matched), terms, kind, class_loss=class_loss, class_weights=given)


@pytest.mark.parametrize("kind", KINDS)
def test_one_label_in_a_third_dimension_is_as_without_it(kind: Any) -> None:
    logits, boxes, targets, matched = on_device(*loss_case((2,), 5, 3, [2, 1], 2, "cross_entropy"))
    one = targets._replace(labels=targets.labels[..., None])
    assert torch.equal(match(logits, boxes, one, backend=kind), match(logits, boxes, targets, backend=kind))
    assert set_loss(logits, boxes, one, matched, backend=kind) == set_loss(
        logits, boxes, targets, matched, backend=kind
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [[[0, 5], [1, -1]], [[-1, 2], [1, -1]], [[0, -2], [1, 2]]])
def test_a_label_that_no_logit_has_shows_behind_others_too(labels: list[list[int]], kind: Any) -> None:
    logits, boxes, targets, matched = on_device(*loss_case((), 4, 3, [2], 2, "focal"))
    targets = targets._replace(labels=torch.tensor([labels], device=DEVICE))
    cost = pairwise_cost(logits, boxes, targets, class_cost="focal", backend=kind)
    assert cost[..., 0].isnan().all()
    assert cost[..., 1].isfinite().all()
    cls = set_loss(logits, boxes, targets, matched, class_loss="focal", backend=kind).cls
    assert cls.isnan()
    of_query = torch.autograd.grad(cls, logits)[0][0].isnan().any(-1)
    assert of_query.nonzero().flatten().tolist() == [int(matched[0, 0])]
    with pytest.raises(ValueError, match=r"targets.labels\[0, 0, \d\] must be 0 to 2, got (5|-1|-2)"):
        match(logits, boxes, targets, class_cost="focal", check=True, backend=kind)


def test_several_labels_are_refused_where_classes_exclude_each_other() -> None:
    logits, boxes, targets, matched = loss_case((), 4, 3, [2], 2, "focal")
    targets = targets._replace(labels=torch.tensor([[[0, 1], [1, -1]]]))
    with pytest.raises(ValueError, match=r"class_cost='softmax' takes one label per target: .* \(1, 2, 2\)"):
        match(logits, boxes, targets)
    with pytest.raises(ValueError, match=r"class_loss='cross_entropy' takes one label per target: .* \(1, 2, 2\)"):
        set_loss(logits, boxes, targets, matched)
    with pytest.raises(ValueError, match=r"targets.labels must be \(1, 2\) for a batch of 1, got \(1, 2, 0\)"):
        match(logits, boxes, targets._replace(labels=targets.labels[..., :0]), class_cost="focal")
    twice = targets._replace(labels=torch.tensor([[[0, 1], [1, 1]]]))
    with pytest.raises(ValueError, match=r"targets.labels\[0, 1\] has label 1 twice"):
        match(logits, boxes, twice, class_cost="focal", check=True)
    with pytest.raises(
        ValueError, match=r"targets.labels must be \(B, M\) here, one label per target, got \(1, 2, 2\)"
    ):
        denoising_queries(targets, classes=3, queries=4)


def test_several_labels_go_through_a_criterion() -> None:
    """Of Deformable DETR, and through one-to-many matching."""
    logits, boxes, targets, _ = loss_case((), 6, 4, [2, 1], 2, "focal")
    several = several_labels(targets, 4, 3)
    samples = [
        {"labels": [labels_of(several, sample, row) for row in range(count)], "boxes": several.boxes[sample, :count]}
        for sample, count in enumerate(targets.counts.tolist())
    ]
    criterion = SetCriterion(4, HungarianMatcher(2, 5, 2, focal=True), {}, focal_alpha=0.25)
    found = criterion(
        {"pred_logits": logits, "pred_boxes": boxes, "enc_outputs": {"pred_logits": logits, "pred_boxes": boxes}},
        samples,
    )
    matched = match(logits, boxes, several, class_cost="focal")
    wanted = sigmoid_class_loss(logits, boxes, several, matched, "focal", 0.25, 2.0)
    torch.testing.assert_close(found["loss_ce"], wanted)
    hits = [
        int(logits[sample, matched[sample, row]].argmax()) in labels_of(several, sample, row)
        for sample, count in enumerate(targets.counts.tolist())
        for row in range(count)
    ]
    assert found["class_error"].item() == pytest.approx(100 - 100 * sum(hits) / len(hits))

    repeated = match(logits, boxes, repeat_targets(several, 2), class_cost="focal").unflatten(-1, (2, 2))
    assert (repeated[0] >= 0).all()
    assert repeated[0].unique().numel() == 4
