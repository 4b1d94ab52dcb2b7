"""Cost, assignment, matching and the whole criterion, timed against everything that does the same: `pytest bench`.

A row is timed only once its output has been checked: the total cost against SciPy's float64 optimum, the loss and the
gradients against the reference in float64. On a GPU the time that counts comes from `measure.measure`.
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
from actdet_kernels import CenterMaps, gather_clips, pairwise_cost, set_loss
from pytest_benchmark.fixture import BenchmarkFixture
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bench.cases import (
    ATTENTIONS,
    CENTERS,
    CHANGES,
    CLIPS,
    MATRICES,
    NORMS,
    OVERLAPS,
    PEAKS,
    PLACES,
    REGIMES,
    SIZES,
    AttentionSize,
    CenterProblem,
    CenterSize,
    ClipSize,
    Matrices,
    NormSize,
    Overlaps,
    OverlapSize,
    PeakSize,
    Problem,
    Size,
    make_attention,
    make_centers,
    make_clips,
    make_cost,
    make_features,
    make_maps,
    make_overlaps,
    make_problem,
)
from bench.measure import CaptureFailed, measure, quantiles
from bench.opponents import (
    ASSIGN,
    ATTENTION,
    CENTER_LOSS,
    COST,
    CRITERION,
    DECODE,
    GATHER,
    MATCH,
    MATCHER_OF,
    NEVER_CAPTURED,
    NORM,
    SUPPRESS,
    Absent,
    tensors_of,
)

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
MOST_ROUNDS, SECONDS = 7, 1.0  # of pytest-benchmark's, whose times include the wait for the device
MOST_ITERATIONS, ROUND = 100, 0.002  # on a CPU, calls and seconds of a round
Record = Callable[..., None]


@pytest.mark.parametrize("name", ASSIGN)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("size", MATRICES, ids=str)
def test_assign(benchmark: BenchmarkFixture, record: Record, size: Matrices, regime: str, name: str) -> None:
    cost = make_cost(size, regime, DEVICE)
    row = {"operation": "assign", "size": str(size), "regime": regime, "name": name}
    compare(
        benchmark, record, row, ASSIGN[name], cost, lambda rows: check_assignment(*optimum_of_cost(size, regime), rows)
    )


@pytest.mark.parametrize("name", COST)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_cost(benchmark: BenchmarkFixture, record: Record, size: Size, name: str) -> None:
    row = {"operation": "cost", "size": str(size), "regime": REGIMES[0], "name": name}
    problem = make_problem(size, REGIMES[0], DEVICE)
    compare(benchmark, record, row, COST[name], problem, lambda cost: close(cost, exact_cost(size, REGIMES[0])))


@pytest.mark.parametrize("name", MATCH)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_match(benchmark: BenchmarkFixture, record: Record, size: Size, regime: str, name: str) -> None:
    row = {"operation": "match", "size": str(size), "regime": regime, "name": name}
    problem = make_problem(size, regime, DEVICE)

    def check(matched: Tensor) -> None:
        check_assignment(*optimum_of_problem(size, regime), matched.flatten(0, 1))

    compare(benchmark, record, row, MATCH[name], problem, check)


@pytest.mark.parametrize("name", CRITERION)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_criterion(benchmark: BenchmarkFixture, record: Record, size: Size, regime: str, name: str) -> None:
    row = {"operation": "criterion", "size": str(size), "regime": regime, "name": name}
    problem = make_problem(size, regime, DEVICE)

    def check(outcome: tuple[Tensor, ...]) -> None:
        """Against the float64 loss under its own matching, of which there may be several of the least cost."""
        matched = MATCHER_OF[name](problem)
        check_assignment(*optimum_of_problem(size, regime), matched.flatten(0, 1))
        for got, wanted in zip(outcome, exact_criterion(size, regime, matched.cpu()), strict=True):
            close(got, wanted)

    compare(benchmark, record, row, CRITERION[name], problem, check)


@pytest.mark.parametrize("name", CENTER_LOSS)
@pytest.mark.parametrize("size", CENTERS, ids=str)
def test_centers(benchmark: BenchmarkFixture, record: Record, size: CenterSize, name: str) -> None:
    """The loss of centers, forward and backward, in float32."""
    row = {"operation": "centers", "size": str(size), "regime": REGIMES[0], "name": name}
    problem = make_centers(size, DEVICE)

    def check(got: tuple[Tensor, ...]) -> None:
        """As a whole, since most of a gradient is 0."""
        for mine, exact in zip(got, exact_centers(size), strict=True):
            error = (mine.cpu().double() - exact).norm() / exact.norm()
            assert error < 1e-4, f"{error:.1e} of the whole is wrong"

    compare(benchmark, record, row, CENTER_LOSS[name], problem, check)


@pytest.mark.parametrize("name", GATHER)
@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("size", CLIPS, ids=str)
def test_clips(benchmark: BenchmarkFixture, record: Record, size: ClipSize, changes: str, name: str) -> None:
    clips = make_clips(size, changes, DEVICE)
    row = {"operation": "clips", "size": str(size), "regime": changes, "name": name}

    def check(got: Tensor) -> None:
        wanted = gather_clips(*make_clips(size, changes, torch.device("cpu")), dtype=torch.float64, backend="reference")
        # Places are float32: 224 pixels wide, where a pixel may differ by all of black and white.
        error = 1e-3 if "windows" in changes else 1e-5
        torch.testing.assert_close(got.cpu().double(), wanted, rtol=0, atol=error)

    compare(benchmark, record, row, GATHER[name], clips, check)


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("size", ATTENTIONS, ids=str)
def test_attention(benchmark: BenchmarkFixture, record: Record, size: AttentionSize, places: str, name: str) -> None:
    """Deformable attention, forward and backward, in float32."""
    problem = make_attention(size, places, DEVICE)
    row = {"operation": "attention", "size": str(size), "regime": places, "name": name}

    def check(got: tuple[Tensor, ...]) -> None:
        """Within rounding, as a whole: of a point at a pixel's center it decides which of two derivatives is taken."""
        for mine, exact in zip(got, exact_attention(size, places), strict=True):
            error = (mine.cpu().double() - exact).norm() / exact.norm()
            assert error < 1e-2, f"{error:.1e} of the whole is wrong"

    compare(benchmark, record, row, ATTENTION[name], problem, check)


@pytest.mark.parametrize("name", DECODE)
@pytest.mark.parametrize("size", PEAKS, ids=str)
def test_peaks(benchmark: BenchmarkFixture, record: Record, size: PeakSize, name: str) -> None:
    """The ten highest peaks of maps of centers in float32."""
    row = {"operation": "peaks", "size": str(size), "regime": REGIMES[0], "name": name}

    def check(got: tuple[Tensor, ...]) -> None:
        wanted = DECODE["eager PyTorch"](make_maps(size, torch.device("cpu")))
        for mine, exact in zip(got, wanted, strict=True):
            torch.testing.assert_close(mine.cpu(), exact)

    compare(benchmark, record, row, DECODE[name], make_maps(size, DEVICE), check)


@pytest.mark.parametrize("name", SUPPRESS)
@pytest.mark.parametrize("size", OVERLAPS, ids=str)
def test_overlaps(benchmark: BenchmarkFixture, record: Record, size: OverlapSize, name: str) -> None:
    """Non-maximum suppression, class by class, in float32."""
    row = {"operation": "overlaps", "size": str(size), "regime": REGIMES[0], "name": name}

    def check(got: Tensor) -> None:
        exact = Overlaps(*(each.double() for each in make_overlaps(size, torch.device("cpu"))))
        assert torch.equal(got.cpu(), SUPPRESS["eager PyTorch"](exact))

    compare(benchmark, record, row, SUPPRESS[name], make_overlaps(size, DEVICE), check)


@pytest.mark.skipif(not ON_GPU, reason="on a CPU it is PyTorch's own")
@pytest.mark.parametrize("name", NORM)
@pytest.mark.parametrize("size", NORMS, ids=str)
def test_norm(benchmark: BenchmarkFixture, record: Record, size: NormSize, name: str) -> None:
    """BatchNorm, sum and ReLU, forward and backward, in bf16, or in fp16 where the card has no units for that."""
    dtype = torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    features = make_features(size, DEVICE, dtype)
    row = {"operation": "norm", "size": str(size), "regime": str(dtype).removeprefix("torch."), "name": name}

    def check(got: tuple[Tensor, ...]) -> None:
        """Within rounding, as a whole: of single values it may decide what the ReLU lets through."""
        given = {name: value.double() for name, value in features._asdict().items() if value is not None}
        wanted = NORM["eager PyTorch"](features._replace(**given))
        for mine, exact in zip(got, wanted, strict=True):
            error = (mine.reshape(-1).double() - _in_order(exact, mine).reshape(-1)).norm() / exact.norm()
            assert error < 1e-2, f"{error:.1e} of the whole is wrong"

    compare(benchmark, record, row, NORM[name], features, check)


def _in_order(exact: Tensor, like: Tensor) -> Tensor:
    """Of video, where `like` is of pictures."""
    return exact.transpose(1, 2).flatten(0, 1) if exact.ndim == like.ndim + 1 else exact


def compare(
    benchmark: BenchmarkFixture,
    record: Record,
    row: dict[str, str],
    function: Callable[[Any], Any],
    problem: Any,
    check: Callable[[Any], None],
) -> None:
    """A row with the time of function(problem), or with why it has none. Ours must be right; others are left out."""
    benchmark.group = " ".join((row["operation"], row["size"], row["regime"]))
    try:
        outcome = function(problem)
        check(outcome)
    except (Absent, AssertionError, RuntimeError) as reason:
        what = {Absent: "", AssertionError: "disagrees with the reference: "}.get(type(reason), "fails: ")
        record(kind="time", **row, why=what + str(reason).strip().partition("\n")[0])
        if row["name"] == "actdet":
            raise
        pytest.skip(what + str(reason))
    times = time_it(benchmark, lambda: function(problem))
    sizes = {"input_bytes": bytes_of(tensors_of(problem)), "output_bytes": bytes_of(tensors_of(outcome))}
    del outcome

    on_gpu: dict[str, Any] = {}
    if ON_GPU:
        try:
            on_gpu = measure(lambda: function(problem), capturable=row["name"] not in NEVER_CAPTURED)
        except CaptureFailed as error:
            what = f"{benchmark.group} of {row['name']} could not be captured ({error})"
            pytest.exit(f"{what}: what follows in this process would be wrong", 1)
    record(kind="time", **row, wall_us=times, **sizes, **on_gpu)


def time_it(benchmark: BenchmarkFixture, run: Callable[[], Any]) -> dict[str, float]:
    """Microseconds of calls that are waited for, by pytest-benchmark."""

    def wait() -> None:
        run()
        if ON_GPU:
            torch.cuda.synchronize()

    start = time.perf_counter()
    wait()
    seconds = time.perf_counter() - start
    rounds = min(max(int(SECONDS / seconds), 1), MOST_ROUNDS)
    # What takes microseconds is called many times a round, as in a training it is: the first call finds nothing warm.
    iterations = 1 if ON_GPU else min(max(int(ROUND / seconds), 1), MOST_ITERATIONS)
    benchmark.pedantic(wait, rounds=rounds, iterations=iterations)
    assert benchmark.stats is not None
    return quantiles([1e6 * value for value in benchmark.stats.stats.data])


def bytes_of(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got.cpu().double(), wanted, rtol=1e-4, atol=1e-5)


@cache
def optimum_of_cost(size: Matrices, regime: str) -> tuple[np.ndarray, list[float]]:
    """(problems, rows, columns) in float64, and the least total cost of each problem, by SciPy."""
    matrices = make_cost(size, regime, torch.device("cpu")).double().numpy()
    return matrices, [matrix[linear_sum_assignment(matrix)].sum() for matrix in matrices]


@cache
def optimum_of_problem(size: Size, regime: str) -> tuple[np.ndarray, list[float]]:
    matrices = exact_cost(size, regime).flatten(0, 1).numpy()
    return matrices, [matrix[linear_sum_assignment(matrix)].sum() for matrix in matrices]


@cache
def exact_cost(size: Size, regime: str) -> Tensor:
    return pairwise_cost(*in_float64(size, regime), backend="reference")


@cache
def exact_attention(size: AttentionSize, places: str) -> tuple[Tensor, ...]:
    """The result and its gradients in float64, by the reference."""
    problem = make_attention(size, places, DEVICE)
    given = {name: value.double() for name, value in problem._asdict().items() if isinstance(value, Tensor)}
    return tuple(value.cpu() for value in ATTENTION["eager PyTorch"](problem._replace(**given)))


@cache
def exact_centers(size: CenterSize) -> tuple[Tensor, ...]:
    """The loss and its gradients in float64, by the reference."""
    maps, targets = make_centers(size, torch.device("cpu"))
    centers, movement, sizes, classes = maps
    exact = CenterMaps(
        centers.double(), movement.double(), sizes.double(), None if classes is None else classes.double()
    )
    return CENTER_LOSS["eager PyTorch"](CenterProblem(exact, targets._replace(boxes=targets.boxes.double())))


def exact_criterion(size: Size, regime: str, matched: Tensor) -> tuple[Tensor, ...]:
    """The loss and its gradients in float64."""
    exact = in_float64(size, regime)
    leaves = (exact.logits.requires_grad_(), exact.boxes.requires_grad_())
    loss = set_loss(*leaves, exact.targets, matched, backend="reference").total
    return loss, *torch.autograd.grad(loss, leaves)


def in_float64(size: Size, regime: str) -> Problem:
    """The same problem on the host."""
    logits, boxes, targets = make_problem(size, regime, torch.device("cpu"))
    return Problem(logits.double(), boxes.double(), targets._replace(boxes=targets.boxes.double()))


def check_assignment(matrices: np.ndarray, optima: list[float], chosen: Tensor) -> None:
    """One-to-one, complete, and as cheap as SciPy's float64 optimum to float32's rounding."""
    for matrix, best, rows in zip(matrices, optima, chosen.tolist(), strict=True):
        pairs = [(row, column) for column, row in enumerate(rows) if row >= 0]
        assert len({row for row, _ in pairs}) == len(pairs) == min(matrix.shape)
        assert math.fsum(matrix[pair] for pair in pairs) == pytest.approx(best, rel=1e-5, abs=1e-5 * len(pairs))
