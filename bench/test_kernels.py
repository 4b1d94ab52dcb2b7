"""Benchmarks of assignment, matching and the whole criterion against everything that does the same; `make bench`.

A row is timed only once its output has been checked: the total cost against SciPy's float64 optimum, the loss and the
gradients against the reference in float64. On a GPU the time that counts is in `extra_info`, from `measure.measure`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from actdet_kernels import Tubelets, explain_backend, match, pairwise_cost, set_loss
from cases import (
    MATRICES,
    REGIMES,
    SIZES,
    SMALL_MATRICES,
    SMALL_SIZES,
    Problem,
    Size,
    make_cost,
    make_problem,
)
from opponents import ASSIGN, CRITERION, MATCH, Absent
from pytest_benchmark.fixture import BenchmarkFixture
from scipy.optimize import linear_sum_assignment
from torch import Tensor

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
CPU_ROUNDS = 7


def time_it(benchmark: BenchmarkFixture, run: Callable[[], Any], **what: Any) -> None:
    """pytest-benchmark times calls that are waited for; on a GPU what the device did is added."""
    benchmark.extra_info.update(what, device=_device_name(), torch=torch.__version__, backend=explain_backend(DEVICE))
    if ON_GPU:
        from measure import measure

        benchmark.extra_info.update(measure(run))

    def wait() -> None:
        run()
        if ON_GPU:
            torch.cuda.synchronize()

    benchmark.pedantic(wait, rounds=CPU_ROUNDS, iterations=1, warmup_rounds=1)


def _device_name() -> str:
    if ON_GPU:
        return torch.cuda.get_device_name()
    with open("/proc/cpuinfo") as file:
        models = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return f"{models[0]}, {torch.get_num_threads()} threads" if models else "CPU"


def run_or_skip(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Absent as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", ASSIGN)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("shape", MATRICES if ON_GPU else SMALL_MATRICES, ids=lambda shape: "x".join(map(str, shape)))
def test_assign(benchmark: BenchmarkFixture, shape: tuple[int, int, int], regime: str, name: str) -> None:
    cost = make_cost(shape, regime, DEVICE)
    check_assignment(cost, run_or_skip(ASSIGN[name], cost))
    benchmark.group = f"assign {shape} {regime}"
    time_it(benchmark, lambda: ASSIGN[name](cost), what="assign", size=list(shape), regime=regime, name=name)


@pytest.mark.parametrize("name", MATCH)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("size", SIZES if ON_GPU else SMALL_SIZES, ids=str)
def test_match(benchmark: BenchmarkFixture, size: Size, regime: str, name: str) -> None:
    problem = make_problem(size, regime, DEVICE)
    matched = run_or_skip(MATCH[name], problem)
    exact = in_float64(problem)
    check_assignment(pairwise_cost(*exact).flatten(0, 1), matched.flatten(0, 1))
    benchmark.group = f"match {size} {regime}"
    time_it(benchmark, lambda: MATCH[name](problem), what="match", size=str(size), regime=regime, name=name)


@pytest.mark.parametrize("name", CRITERION)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("size", SIZES if ON_GPU else SMALL_SIZES, ids=str)
def test_criterion(benchmark: BenchmarkFixture, size: Size, regime: str, name: str) -> None:
    problem = make_problem(size, regime, DEVICE)
    outcome = run_or_skip(CRITERION[name], problem)
    exact = in_float64(problem)
    leaves = [value.requires_grad_() for value in exact[:2]]
    loss = set_loss(*leaves, exact.targets, match(*exact)).total
    for got, wanted in zip(outcome, (loss, *torch.autograd.grad(loss, leaves)), strict=True):
        if got.ndim == 0 or regime != "near-identical":  # gradients of another matching, as cheap to rounding, differ
            torch.testing.assert_close(got.cpu().double(), wanted, rtol=1e-4, atol=1e-5)
    benchmark.group = f"criterion {size} {regime}"
    time_it(benchmark, lambda: CRITERION[name](problem), what="criterion", size=str(size), regime=regime, name=name)


def in_float64(problem: Problem) -> Problem:
    """The same problem on the host, where the reference runs."""
    targets = problem.targets.to("cpu")
    fields = (targets.labels, targets.boxes.double(), *targets[2:])
    exact = Tubelets(*fields) if isinstance(targets, Tubelets) else type(targets)(*fields)
    return Problem(problem.logits.cpu().double(), problem.boxes.cpu().double(), exact)


def check_assignment(cost: Tensor, chosen: Tensor) -> None:
    """One-to-one, complete, and as cheap as SciPy's float64 optimum to float32's rounding."""
    for matrix, rows in zip(cost.cpu().double().numpy(), chosen.tolist(), strict=True):
        pairs = [(row, column) for column, row in enumerate(rows) if row >= 0]
        assert len({row for row, _ in pairs}) == len(pairs) == min(matrix.shape)
        best = matrix[linear_sum_assignment(matrix)].sum()
        assert math.fsum(matrix[pair] for pair in pairs) == pytest.approx(best, rel=1e-5, abs=1e-5 * len(pairs))
