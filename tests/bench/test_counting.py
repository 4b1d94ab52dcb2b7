"""Launches and reads that are counted without a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from actdet_kernels import match, set_loss
from torch import Tensor

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
