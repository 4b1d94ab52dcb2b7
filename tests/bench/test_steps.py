"""The inner steps of the solver, counted, and what its start is worth."""

from __future__ import annotations

import pytest
import torch
from actdet_kernels import assign

from bench.steps import searches_of
from tests.kernels.device import NEEDS_KERNELS

pytestmark = NEEDS_KERNELS


def searches(cost: torch.Tensor) -> list[int]:
    return searches_of(lambda: assign(cost[None], backend="triton"))


def test_steps_are_those_of_the_shortest_paths() -> None:
    """All rows want the columns in the same order: the next row looks at all that are taken, and at one more."""
    assert searches(torch.arange(8.0).expand(4, 8)) == [2, 3, 4]


def test_rows_that_want_different_columns_need_no_step() -> None:
    assert searches(1 - torch.eye(6)[torch.tensor([3, 0, 5, 1])]) == []


@pytest.mark.parametrize("transposed", [False, True])
def test_prices_to_start_with_save_steps_on_squares(transposed: bool) -> None:
    """Rows, or columns, that differ by little more than a constant: without prices one of the two takes n^2 / 2."""
    generator = torch.Generator().manual_seed(0)
    size = 24
    cost = torch.rand(size, 1, generator=generator) + 1e-3 * torch.rand(size, size, generator=generator)
    assert sum(searches(cost.T.contiguous() if transposed else cost)) < size * size / 6
