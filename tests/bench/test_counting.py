"""Launches and reads that are counted without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from actdet_kernels import match, set_loss
from torch import Tensor

from actdet.data.truth import centered_targets
from actdet.models.families import FAMILIES, build_network, config_class, loss_class
from bench.cases import Problem, Size, make_problem
from bench.counting import count
from tests.kernels.device import NEEDS_KERNELS

pytestmark = NEEDS_KERNELS
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("size", "launches"), [(Size(2, 2, 5, 3, classes=4), 5), (Size(2, 2, 5, 3, classes=4, frames=2), 6)], ids=str
)
def test_kernels_count_as_one_launch_each(size: Size, launches: int) -> None:
    def criterion(problem: Problem) -> None:
        leaves = (problem.logits.detach().requires_grad_(), problem.boxes.detach().requires_grad_())
        loss = set_loss(*leaves, problem.targets, match(*leaves, problem.targets)).total
        torch.autograd.grad(loss, leaves)

    assert count(criterion, make_problem(size, "uniform", CPU)) == (launches, 0)


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda x: x + 1, (1, 0)),
        (lambda x: x.view(-1).t()[1:], (0, 0)),
        (lambda x: torch.ones(3) + 1, (0, 0)),
        (lambda x: (x + torch.ones(6)) * 2, (2, 0)),
        (lambda x: x.sum().item(), (2, 1)),
        (lambda x: x.cpu() + 1, (0, 1)),
        (lambda x: x.to("cpu", torch.float64) + 1, (0, 1)),
        (lambda x: x.tolist(), (0, 1)),
        (lambda x: x.numpy(), (0, 1)),
        (lambda x: x.nonzero(), (1, 1)),
        (lambda x: bool((x > 0).any()), (3, 1)),
    ],
)
def test_operators_on_what_passes_for_a_device_count(function: Callable[[Tensor], object], wanted: object) -> None:
    assert count(function, torch.ones(6)) == wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_step_of_each_family_reads_nothing_back(family: str) -> None:
    """Backbone, hints, losses and gradients: from the batch to the last gradient the host only launches."""
    network = build_network(config_class(family)(image_size=32, frames=8)).train()
    head = network.auxiliary_head()
    clips = torch.randn(2, 8, 32, 32, 3).permute(0, 4, 1, 2, 3)
    targets = centered_targets(network.truth, 2, 8)
    parameters = [*network.parameters(), *([] if head is None else head.parameters())]

    def step(problem: Any) -> None:
        clips, targets, _ = problem
        features = network.backbone(clips)
        outputs = network.detect(features, network.hints(targets))
        options = {} if head is None else {"auxiliary_output": head(features), "auxiliary_weight": 1.0}
        losses = network.losses(outputs, targets, loss_class(family)(), **options)
        losses["total"].backward()

    counted = count(step, (clips, targets, parameters))
    assert counted.launches > 100
    assert counted.reads == 0
    assert all(parameter.grad is not None for parameter in parameters if parameter.requires_grad)
