"""The solver's look for the nearest column, by 32-bit and by 64-bit reductions, against NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from actdet_kernels import match, solve_assignment

from tests.kernels.device import DEVICE, NEEDS_KERNELS
from tests.kernels.oracles import random_boxes, random_logits, random_targets

triton = pytest.importorskip("triton", reason="there is no Triton for this platform")

import triton.language as tl  # noqa: E402
from actdet_kernels.gate_cases import FP32, assign  # noqa: E402
from actdet_kernels.gates import launches_of  # noqa: E402
from actdet_kernels.triton import launch  # noqa: E402
from actdet_kernels.triton.assignment import least_and_first  # noqa: E402

pytestmark = NEEDS_KERNELS


@triton.jit
def look_kernel(values, ties, least, first, BLOCK: tl.constexpr, REDUX: tl.constexpr):
    """One look along a vector, and one along each row of a tile of two."""
    o = tl.arange(0, BLOCK)
    value, tie = least_and_first(tl.load(values + o), tl.load(ties + o), REDUX)
    tl.store(least, value)
    tl.store(first, tie)

    o_i = tl.arange(0, 2)
    places = o_i[:, None] * BLOCK + o[None, :]
    value, tie = least_and_first(tl.load(values + places), tl.load(ties + o)[None, :], REDUX)
    tl.store(least + 1 + o_i, value)
    tl.store(first + 1 + o_i, tie)


def least_and_first_of(values: np.ndarray, ties: np.ndarray) -> tuple[float, int]:
    """NaN last, -0 before 0, and of equals the least tie."""
    order = np.lexsort((ties, ~np.signbit(values), values))
    return float(values[order[0]]), int(ties[order[0]])


INF, NAN = math.inf, math.nan
DRAWN_FROM = {
    "all different": None,
    "ties": [1.0, 1.0, 2.0],
    "zeros of both signs": [0.0, -0.0, 0.0],
    "zeros and more": [0.0, -0.0, 1.0, 1e-45],
    "negative": [-1.0, -2.0, -2.0, 3.0],
    "subnormal": [1e-45, 3e-45, -1e-45],
    "infinity": [INF, INF],
    "both infinities": [INF, -INF, 1.0],
    "NaN is never the least": [NAN, INF, 4.0],
    "nothing but NaN": [NAN],
}


@pytest.mark.parametrize("redux", [True, False])
@pytest.mark.parametrize("size", [32, 128, 512])
@pytest.mark.parametrize("kind", DRAWN_FROM)
def test_which_is_least_and_the_first_of_equals(kind: str, size: int, redux: bool) -> None:
    rng = np.random.default_rng([size, len(kind)])
    drawn_from = DRAWN_FROM[kind]
    values = rng.standard_normal((2, size)) if drawn_from is None else rng.choice(drawn_from, (2, size))
    values = values.astype(np.float32)
    ties = rng.permutation(2 * size)[:size].astype(np.int32)
    least = torch.full((3,), 7.0, device=DEVICE)
    first = torch.full((3,), -7, dtype=torch.int32, device=DEVICE)
    look_kernel[(1,)](
        torch.from_numpy(values).to(DEVICE), torch.from_numpy(ties).to(DEVICE), least, first, BLOCK=size, REDUX=redux
    )

    wanted = [least_and_first_of(row, ties) for row in (values[0], values[0], values[1])]
    numbers = np.array([value for value, _ in wanted], np.float32)
    np.testing.assert_array_equal(least.cpu().numpy(), numbers)
    np.testing.assert_array_equal(np.signbit(least.cpu().numpy()), np.signbit(numbers))
    assert first.tolist() == [tie for _, tie in wanted]


def both_ways(call: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    results = []
    for capability in ((7, 5), (8, 0)):
        monkeypatch.setattr(launch, "capability", lambda device, found=capability: found)
        results.append(call())
    return results


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (9, 9), (100, 20)])
def test_older_gpus_are_told_the_same(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    cost = torch.rand(2, *shape, generator=torch.Generator().manual_seed(sum(shape)))
    # The second has many ties, of both signs of 0, too, and entries that are not finite.
    cost[1] = (4 * cost[1] - 2).round()
    cost[1, 0, 1] = NAN
    older, newer = both_ways(lambda: solve_assignment(cost.to(DEVICE), backend="triton"), monkeypatch)
    for mine, theirs in zip(older, newer, strict=True):
        assert torch.equal(mine, theirs)

    targets = random_targets([4, 2], 4, 2, seed=5).to(DEVICE)
    logits, boxes = random_logits(2, 12, 3, seed=5).float(), random_boxes(2, 12, seed=5).float()
    older, newer = both_ways(lambda: match(logits.to(DEVICE), boxes.to(DEVICE), targets, backend="triton"), monkeypatch)
    assert torch.equal(older, newer)


@pytest.mark.parametrize(("capability", "redux"), [(60, False), (75, False), (80, True), (90, True), (120, True)])
def test_each_gpu_gets_the_reduction_it_has(capability: int, redux: bool) -> None:
    ((_, values),) = launches_of(lambda: assign(12, 5, FP32), capability)
    assert values["REDUX"] is redux
