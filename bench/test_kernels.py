"""Benchmarks of assignment, matching and the whole criterion against everything that does the same: `pytest bench`.

A row is timed only once its output has been checked: the total cost against SciPy's float64 optimum, the loss and the
gradients against the reference in float64. On a GPU the time that counts is in `extra_info`, from `measure.measure`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from actdet_kernels import explain_backend, match, pairwise_cost, set_loss
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
MOST_ROUNDS, SECONDS = 7, 1.0  # of pytest-benchmark's, whose times include the wait for the device


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

    wait()
    start = time.perf_counter()
    wait()
    rounds = min(max(int(SECONDS / (time.perf_counter() - start)), 1), MOST_ROUNDS)
    benchmark.pedantic(wait, rounds=rounds, iterations=1)


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
    check_assignment(*optimum_of_cost(shape, regime), run_or_skip(ASSIGN[name], cost))
    benchmark.group = f"assign {shape} {regime}"
    time_it(benchmark, lambda: ASSIGN[name](cost), what="assign", size=list(shape), regime=regime, name=name)


@pytest.mark.parametrize("name", MATCH)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("size", SIZES if ON_GPU else SMALL_SIZES, ids=str)
def test_match(benchmark: BenchmarkFixture, size: Size, regime: str, name: str) -> None:
    problem = make_problem(size, regime, DEVICE)
    matched = run_or_skip(MATCH[name], problem)
    check_assignment(*optimum_of_problem(size, regime), matched.flatten(0, 1))
    benchmark.group = f"match {size} {regime}"
    time_it(benchmark, lambda: MATCH[name](problem), what="match", size=str(size), regime=regime, name=name)


@pytest.mark.parametrize("name", CRITERION)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("size", SIZES if ON_GPU else SMALL_SIZES, ids=str)
def test_criterion(benchmark: BenchmarkFixture, size: Size, regime: str, name: str) -> None:
    problem = make_problem(size, regime, DEVICE)
    outcome = run_or_skip(CRITERION[name], problem)
    for got, wanted in zip(outcome, exact_criterion(size, regime), strict=True):
        if got.ndim == 0 or regime != "near-identical":  # gradients of another matching, as cheap to rounding, differ
            torch.testing.assert_close(got.cpu().double(), wanted, rtol=1e-4, atol=1e-5)
    benchmark.group = f"criterion {size} {regime}"
    time_it(benchmark, lambda: CRITERION[name](problem), what="criterion", size=str(size), regime=regime, name=name)


@cache
def optimum_of_cost(shape: tuple[int, int, int], regime: str) -> tuple[np.ndarray, list[float]]:
    """(problems, rows, columns) in float64, and the least total cost of each problem, by SciPy."""
    matrices = make_cost(shape, regime, torch.device("cpu")).double().numpy()
    return matrices, [matrix[linear_sum_assignment(matrix)].sum() for matrix in matrices]


@cache
def optimum_of_problem(size: Size, regime: str) -> tuple[np.ndarray, list[float]]:
    matrices = pairwise_cost(*in_float64(size, regime)).flatten(0, 1).numpy()
    return matrices, [matrix[linear_sum_assignment(matrix)].sum() for matrix in matrices]


@cache
def exact_criterion(size: Size, regime: str) -> tuple[Tensor, ...]:
    """The loss and its gradients in float64."""
    exact = in_float64(size, regime)
    leaves = [value.requires_grad_() for value in exact[:2]]
    loss = set_loss(*leaves, exact.targets, match(*exact)).total
    return loss, *torch.autograd.grad(loss, leaves)


def in_float64(size: Size, regime: str) -> Problem:
    """The same problem on the host, where the reference runs."""
    logits, boxes, targets = make_problem(size, regime, torch.device("cpu"))
    return Problem(logits.double(), boxes.double(), targets._replace(boxes=targets.boxes.double()))


def check_assignment(matrices: np.ndarray, optima: list[float], chosen: Tensor) -> None:
    """One-to-one, complete, and as cheap as SciPy's float64 optimum to float32's rounding."""
    for matrix, best, rows in zip(matrices, optima, chosen.tolist(), strict=True):
        pairs = [(row, column) for column, row in enumerate(rows) if row >= 0]
        assert len({row for row, _ in pairs}) == len(pairs) == min(matrix.shape)
        assert math.fsum(matrix[pair] for pair in pairs) == pytest.approx(best, rel=1e-5, abs=1e-5 * len(pairs))
