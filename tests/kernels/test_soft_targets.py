"""The IoU of boxes as the target of their class, in loss and cost: against other forms of both in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from actdet_kernels import Tubelets, match, pairwise_cost, set_loss
from torch import Tensor

from tests.kernels.checks import CASES, check_cost, check_loss, on_device, same_in_all, sigmoid_cost_case
from tests.kernels.device import DEVICE, KINDS, POISONED
from tests.kernels.oracles import (
    LossCase,
    criterion,
    loss_case,
    random_boxes,
    random_targets,
    random_tubelets,
    sigmoid_class_loss,
    tubelet_criterion,
)

pytestmark = POISONED


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("class_loss", "alpha", "gamma"),
    [("varifocal", 0.75, 2.0), ("varifocal", 0.3, 1.5), ("quality_focal", 0.25, 2.0), ("quality_focal", 0.25, 1.3)],
)
@pytest.mark.parametrize("frames", [None, 3])
def test_the_target_of_a_label_is_the_iou(
    frames: int | None, class_loss: Any, alpha: float, gamma: float, kind: Any
) -> None:
    counts = [4, 0, 2]
    logits, boxes, targets, matched = loss_case((2,), 6, 5, counts, 4, "focal")
    if frames is not None:
        targets = random_tubelets(counts, 4, frames, 5, seed=5)._replace(labels=targets.labels)
        boxes = random_boxes(2, 3, 6, frames, seed=6)

    def terms(logits: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        rest = (matched, 0.1, "focal")
        if isinstance(targets, Tubelets):
            _, l1, giou = tubelet_criterion(logits.detach(), boxes, targets, *rest)
        else:
            _, l1, giou = criterion(logits.detach(), boxes, targets, *rest)
        return sigmoid_class_loss(logits, boxes, targets, matched, class_loss, alpha, gamma), l1, giou

    drawn = (logits, boxes, targets, matched)
    check_loss(drawn, terms, kind, class_loss=class_loss, alpha=alpha, gamma=gamma)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("class_cost", "alpha", "gamma"),
    [("varifocal", 0.75, 2.0), ("varifocal", 0.3, 1.5), ("quality_focal", 0.25, 2.0), ("quality_focal", 0.25, 1.3)],
)
@pytest.mark.parametrize("frames", [None, 3])
@pytest.mark.parametrize(("queries", "counts"), [(6, [4, 0, 2]), (3, [4, 1, 0])])
def test_a_soft_cost_is_what_the_loss_changes_by(
    queries: int, counts: list[int], frames: int | None, class_cost: Any, alpha: float, gamma: float, kind: Any
) -> None:
    case, wanted = sigmoid_cost_case(queries, counts, frames, 1, class_cost, alpha, gamma)
    check_cost(case, wanted, kind, class_cost=class_cost, alpha=alpha, gamma=gamma)


@pytest.mark.parametrize(("class_loss", "gamma"), [("varifocal", 0.5), ("varifocal", 2.0), ("quality_focal", 1.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_probabilities_of_0_and_1_give_finite_soft_losses(class_loss: Any, gamma: float, dtype: torch.dtype) -> None:
    rows = [[200.0, -200.0, 0.0], [-8192.0, 8192.0, 200.0], [-200.0, 8192.0, -8192.0], [0.0, 40.0, -40.0]]
    targets = random_targets([4], 4, 3, seed=3)
    targets.labels[0] = torch.tensor([0, 0, 2, 1])
    logits = torch.tensor([rows], dtype=dtype)
    boxes = random_boxes(1, 4, seed=3).to(dtype)
    # One pair of equal boxes, whose quality is 1, and one that has no area.
    targets.boxes[0, 0] = boxes[0, 0]
    boxes[0, 1, 2:] = 0
    arguments = on_device(logits, boxes, targets, torch.tensor([[0, 1, 2, 3]]))
    same_in_all(*arguments, error=16 * torch.finfo(dtype).eps, class_loss=class_loss, gamma=gamma)

    options: Any = {"class_cost": class_loss, "gamma": gamma}
    *found, wanted = (pairwise_cost(*arguments[:3], **options, backend=kind) for kind in KINDS)
    error = 16 * torch.finfo(dtype).eps
    for got in found:
        assert got.isfinite().all()
        torch.testing.assert_close(got, wanted, rtol=error, atol=error)


def test_a_quality_focal_gamma_below_1_is_refused() -> None:
    logits, boxes, targets, matched = loss_case((), 4, 3, [1], 1, "focal")
    with pytest.raises(ValueError, match=r"gamma must be at least 1 with quality_focal, .* got 0.5"):
        set_loss(logits, boxes, targets, matched, class_loss="quality_focal", gamma=0.5)
    with pytest.raises(ValueError, match=r"gamma must be at least 1 with quality_focal, .* got 0.5"):
        match(logits, boxes, targets, class_cost="quality_focal", gamma=0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("class_loss", ["varifocal", "quality_focal"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_classes_weigh_in_the_soft_losses(case: LossCase, class_loss: Any, kind: Any) -> None:
    weights = torch.linspace(0, 2, case[2], dtype=torch.float64)
    logits, boxes, targets, matched = loss_case(*case, "focal")

    def terms(logits: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        cls = sigmoid_class_loss(logits, boxes, targets, matched, class_loss, 0.25, 2.0, weights)
        return cls, *criterion(logits.detach(), boxes, targets, matched, 0.1, "focal")[1:]

    drawn = (logits, boxes, targets, matched)
    check_loss(drawn, terms, kind, class_loss=class_loss, class_weights=weights.to(DEVICE))
