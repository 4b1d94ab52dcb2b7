"""The detector's losses: their sum, the auxiliary loss by its definition, and several processes as one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from actdet_kernels import Targets, match, set_loss
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou_loss

from actdet.distributed import Processes
from actdet.models.detr.config import LossConfig, ModelConfig
from actdet.models.detr.losses import AUXILIARY_WEIGHTS, LOSSES, AuxiliaryHead, detector_losses

CONFIG = LossConfig(cls_weight=1.5, l1_weight=4.0, giou_weight=3.0, no_object_weight=0.2)


def problem(batch: int, counts: list[int]) -> dict[str, Any]:
    """Random predictions of two layers, with gradients, and `counts` actions in the clips."""
    generator = torch.Generator().manual_seed(3)
    boxes = 0.2 + 0.5 * torch.rand(batch, max(counts), 4, generator=generator)
    labels = torch.randint(0, 3, (batch, max(counts)), generator=generator)
    return {
        "logits": torch.randn(2, batch, 6, 4, generator=generator).requires_grad_(),
        "boxes": torch.rand(2, batch, 6, 4, generator=generator).requires_grad_(),
        "targets": Targets(labels, boxes, torch.tensor(counts, dtype=torch.int32)),
        "auxiliary_output": torch.randn(batch, 1, 8, generator=generator).requires_grad_(),
    }


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_the_total_is_the_weighted_sum(weight: float) -> None:
    given = problem(4, [1, 0, 2, 3])
    losses = detector_losses(**given, config=CONFIG, auxiliary_weight=weight)
    assert tuple(losses) == LOSSES == ("total", "cls", "l1", "giou", "auxiliary")
    assert {loss.shape for loss in losses.values()} == {()}
    terms = 1.5 * losses["cls"] + 4.0 * losses["l1"] + 3.0 * losses["giou"] + weight * losses["auxiliary"]
    torch.testing.assert_close(losses["total"], terms)
    assert (losses["auxiliary"] > 0) == (weight > 0)

    logits = given["logits"]
    boxes = given["boxes"]
    targets = given["targets"]
    matched = match(logits, boxes, targets, weights=CONFIG.match_weights)
    alone = set_loss(logits, boxes, targets, matched, weights=CONFIG.match_weights, no_object_weight=0.2)
    for name in ("cls", "l1", "giou"):
        assert torch.equal(losses[name], getattr(alone, name))


def test_the_auxiliary_loss_is_that_of_one_query() -> None:
    """A cross-entropy in which no action weighs as much as the others, and the boxes of the clips that have one."""
    given = problem(5, [1, 0, 1, 1, 0])
    targets = given["targets"]
    output = given["auxiliary_output"][:, 0].double()
    has_action = targets.counts > 0
    labels = torch.where(has_action, targets.labels[:, 0], 3)
    boxes = output[has_action, 4:].sigmoid()
    wanted = targets.boxes[has_action, 0].double()
    corners, wanted_corners = (box_convert(value, "cxcywh", "xyxy") for value in (boxes, wanted))
    by_cls, by_l1, by_giou = AUXILIARY_WEIGHTS
    expected = by_cls * F.cross_entropy(output[:, :4], labels)
    expected += by_l1 * F.l1_loss(boxes, wanted, reduction="sum") / 3
    expected += by_giou * generalized_box_iou_loss(corners, wanted_corners, reduction="sum") / 3

    losses = detector_losses(**given, config=CONFIG, auxiliary_weight=0.5)
    torch.testing.assert_close(losses["auxiliary"].double(), expected, rtol=1e-5, atol=1e-6)


def test_without_a_weight_the_auxiliary_head_is_not_needed() -> None:
    given = problem(2, [1, 1])
    given.pop("auxiliary_output")
    assert detector_losses(**given, config=CONFIG)["auxiliary"] == 0


@dataclass(frozen=True)
class Meeting(Processes):
    """Two processes, one after the other: the first round only notes what each adds, the second one adds it up."""

    count: int = 2
    noted: list[list[Tensor]] = field(default_factory=lambda: [[], []])
    calls: list[int] = field(default_factory=lambda: [0])

    def sum(self, tensor: Tensor) -> Tensor:
        own = self.noted[self.rank]
        if self.calls[0] < 0:
            own.append(tensor.clone())
            return tensor
        total = self.noted[0][self.calls[0]] + self.noted[1][self.calls[0]]
        self.calls[0] += 1
        return tensor.copy_(total)


@pytest.mark.parametrize("counts", [[1, 0, 2, 3, 1, 0], [0, 0, 0, 1, 2, 1], [0] * 5 + [9]])
def test_the_mean_over_the_processes_is_the_loss_of_the_whole_batch(counts: list[int]) -> None:
    """Of losses and gradients, whatever the shares hold: one has no action, another more than there are queries."""
    given = problem(6, counts)
    inputs = [given["logits"], given["boxes"], given["auxiliary_output"]]
    whole = detector_losses(**given, config=CONFIG, auxiliary_weight=0.7)
    wanted = torch.autograd.grad(whole["total"], inputs)

    def of_share(rank: int, noted: list[list[Tensor]], first: int) -> dict[str, Tensor]:
        clips = slice(3 * rank, 3 * rank + 3)
        return detector_losses(
            given["logits"][:, clips],
            given["boxes"][:, clips],
            Targets(*(value[clips] for value in given["targets"])),
            CONFIG,
            auxiliary_output=given["auxiliary_output"][clips],
            auxiliary_weight=0.7,
            processes=Meeting(rank, 2, noted, [first]),
        )

    noted: list[list[Tensor]] = [[], []]
    for rank in (0, 1):
        of_share(rank, noted, -1)
    shares = [of_share(rank, noted, 0) for rank in (0, 1)]
    for name, loss in whole.items():
        torch.testing.assert_close((shares[0][name] + shares[1][name]) / 2, loss, rtol=1e-5, atol=1e-6)
    mean = (shares[0]["total"] + shares[1]["total"]) / 2
    for gradient, expected in zip(torch.autograd.grad(mean, inputs), wanted, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_the_auxiliary_head_reads_the_averaged_features() -> None:
    head = AuxiliaryHead(ModelConfig(("a", "b", "c")), 512)
    features = torch.randn(2, 512, 1, 3, 4, generator=torch.Generator().manual_seed(5))
    wanted = features.double().mean((2, 3, 4)) @ head.weight.double().T + head.bias.double()
    got = head(features.bfloat16().float())
    assert got.shape == (2, 1, 8)
    torch.testing.assert_close(head(features)[:, 0].double(), wanted, rtol=1e-5, atol=1e-5)
    assert head(features.bfloat16()).dtype == torch.float32
    assert torch.equal(head(features.bfloat16()), got)
