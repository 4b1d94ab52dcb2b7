"""What only a GPU can show: the sizes of a training, no wait for the device, graph capture, the same bits twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from actdet_kernels import (
    Targets,
    Tubelets,
    assign,
    batch_norm,
    frame_levels,
    gather_clips,
    match,
    pairwise_cost,
    set_loss,
    solve_assignment,
    solve_matching,
)
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch._C._autograd import DeviceType

from tests.kernels.device import HAS_CPP
from tests.kernels.oracles import changed_clips, clip_error, random_boxes, random_clips, random_logits, random_targets

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # PyTorch says that its refusal to wait is a prototype
]

# layers, samples, queries, targets, classes, frames
SIZES = [
    (3, 16, 12, 4, 3, None),
    (6, 16, 100, 20, 92, None),
    (6, 16, 100, 63, 92, None),
    (7, 16, 300, 100, 92, None),
    (7, 4, 900, 100, 92, None),
    (5, 2, 3900, 30, 92, None),
    (2, 4, 20, 300, 9, None),
    (1, 8, 64, 8, 3, 32),
]


def make(
    size: tuple[Any, ...], seed: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Targets | Tubelets]:
    """Predictions on the GPU and targets of random counts."""
    layers, samples, queries, targets, classes, frames = size
    counts = np.random.default_rng(seed).integers(0, targets + 1, samples).tolist()
    padded = random_targets(counts, targets, classes - 1, seed=seed, dtype=torch.float32)
    logits = random_logits(layers, samples, queries, classes, seed=seed, dtype=dtype)
    if frames is None:
        boxes = random_boxes(layers, samples, queries, seed=seed, dtype=dtype)
        return logits.cuda(), boxes.cuda(), padded.to("cuda")
    boxes = random_boxes(layers, samples, queries, frames, seed=seed, dtype=dtype)
    visible = torch.from_numpy(np.random.default_rng(seed).random((samples, targets, frames)) < 0.7)
    goals = random_boxes(samples, targets, frames, seed=seed + 1, dtype=torch.float32)
    goals[~visible] = math.nan
    return logits.cuda(), boxes.cuda(), Tubelets(padded.labels, goals, padded.counts, visible).to("cuda")


def criterion(logits: Tensor, boxes: Tensor, targets: Targets | Tubelets, kind: Any = "softmax") -> list[Tensor]:
    """Everything that a training step asks for: the matching, the losses, the gradients."""
    class_loss: Any = {"softmax": "cross_entropy", "focal": "focal"}[kind]
    logits, boxes = (value.detach().requires_grad_() for value in (logits, boxes))
    matched, status = solve_matching(logits, boxes, targets, class_cost=kind)
    losses = set_loss(logits, boxes, targets, matched, class_loss=class_loss)
    return [matched, status, *losses, *torch.autograd.grad(losses.total, [logits, boxes])]


def launched(profile: torch.profiler.profile) -> list[str]:
    """What ran on the GPU."""
    events = profile.events()
    assert events is not None
    return [event.name for event in events if event.device_type == DeviceType.CUDA]


@pytest.mark.parametrize("kind", ["softmax", "focal"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_real_sizes_are_the_references_in_float64(size: tuple[Any, ...], kind: Any) -> None:
    logits, boxes, targets = make(size, seed=1)
    got = [value.cpu() for value in criterion(logits, boxes, targets, kind)]
    logits, boxes = (value.cpu().double().requires_grad_() for value in (logits, boxes))
    on_host = targets.to("cpu")
    cost = pairwise_cost(logits, boxes, on_host, class_cost=kind).flatten(0, 1)
    counts = on_host.counts.tolist() * logits.shape[0]
    for matrix, count, rows in zip(cost.numpy(), counts, got[0].flatten(0, 1).tolist(), strict=True):
        pairs = [(row, column) for column, row in enumerate(rows) if row >= 0]
        assert len({row for row, _ in pairs}) == len(pairs) == min(count, matrix.shape[0])
        best = matrix[:, :count][linear_sum_assignment(matrix[:, :count])].sum()
        assert math.fsum(matrix[pair] for pair in pairs) == pytest.approx(best, rel=1e-5, abs=1e-5 * len(pairs))
    class_loss: Any = {"softmax": "cross_entropy", "focal": "focal"}[kind]
    losses = set_loss(logits, boxes, on_host, got[0], class_loss=class_loss)
    gradients = torch.autograd.grad(losses.total, [logits, boxes])
    for mine, theirs in zip(got[2:], [*losses, *gradients], strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(208, 300, 100), (8, 300, 300), (8, 300, 600), (5, 1024, 1024), (2, 1500, 700)])
@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_real_assignments_cost_what_scipys_do(shape: tuple[int, int, int], spread: float) -> None:
    rng = np.random.default_rng(2)
    cost = rng.random((shape[0], 1, shape[2])) + spread * rng.random(shape)
    for values in (cost.astype(np.float32), np.floor(cost * 1e4).astype(np.int32)):
        solution = solve_assignment(torch.from_numpy(values).cuda())
        for matrix, rows, u, v in zip(
            values.astype(float), *(field.cpu().numpy() for field in (solution[0], *solution[2:4])), strict=True
        ):
            pairs = [(row, column) for column, row in enumerate(rows.tolist()) if row >= 0]
            assert len({row for row, _ in pairs}) == len(pairs) == min(matrix.shape)
            best = matrix[linear_sum_assignment(matrix)].sum()
            error = 1e-6 * np.abs(matrix).max() * len(pairs)
            assert math.fsum(matrix[pair] for pair in pairs) == pytest.approx(best, abs=error)
            assert (matrix - u[:, None] - v).min() >= -error


@pytest.fixture
def refuse_waiting() -> Iterator[Callable[[bool], None]]:
    """Switches on that PyTorch raises where the host waits for the device."""
    yield lambda on: torch.cuda.set_sync_debug_mode("error" if on else "default")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_nothing_waits_for_the_device(size: tuple[Any, ...], refuse_waiting: Callable[[bool], None]) -> None:
    predictions = make(size, seed=3)
    costs = torch.rand(4, 30, 20, device="cuda")
    # Triton compiles.
    criterion(*predictions)
    solve_assignment(costs, maximize=True)
    refuse_waiting(True)
    criterion(*predictions)
    solve_assignment(costs, maximize=True)
    assign(costs, torch.zeros(4, dtype=torch.int32, device="cuda"))
    pairwise_cost(*predictions)
    with pytest.raises(RuntimeError, match="synchroniz"):
        costs.sum().item()  # the mode does refuse


@pytest.mark.parametrize("kind", ["softmax", "focal"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_captured_graph_replays_other_inputs_targets_and_counts(size: tuple[Any, ...], kind: str) -> None:
    logits, boxes, targets = make(size, seed=4)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        criterion(logits, boxes, targets, kind)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = criterion(logits, boxes, targets, kind)
    for seed in (5, 6):
        others = make(size, seed=seed)
        for mine, other in zip((logits, boxes, *targets), (*others[:2], *others[2]), strict=True):
            mine.copy_(other)
        graph.replay()
        for mine, wanted in zip(captured, criterion(*others, kind), strict=True):
            assert torch.equal(mine, wanted)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_two_runs_give_the_same_bits(size: tuple[Any, ...]) -> None:
    predictions = make(size, seed=7, dtype=torch.bfloat16)
    first = criterion(*predictions)
    for _ in range(20):
        for mine, wanted in zip(criterion(*predictions), first, strict=True):
            assert torch.equal(mine, wanted)


@pytest.mark.parametrize("size", [SIZES[1], SIZES[-1]], ids=str)
def test_the_whole_criterion_takes_at_most_six_launches(size: tuple[Any, ...]) -> None:
    predictions = make(size, seed=8)
    criterion(*predictions)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        criterion(*predictions)
    on_device = launched(profile)
    assert 4 <= len(on_device) <= 6, on_device


def test_few_kernels_serve_all_sizes() -> None:
    """As many entries as the runtime's own caches gain while M walks from 1 to 100, L and B with it."""
    from actdet_kernels.triton import cost, loss, matching

    kernels = [matching.match_kernel, cost.pairwise_cost_kernel]
    kernels += [loss.set_loss_kernel, loss.total_kernel, loss.gradient_kernel]

    def compiled() -> int:
        return sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())

    before = compiled()
    for targets in range(1, 101):
        criterion(*make((1 + targets % 7, 1 + targets % 5, 100, targets, 17, None), seed=targets))
    assert 0 < compiled() - before <= 8


def test_torch_compile_takes_it_whole() -> None:
    logits, boxes, targets = make(SIZES[1], seed=9)

    def loss(logits: Tensor, boxes: Tensor, targets: Targets | Tubelets) -> Tensor:
        return set_loss(logits, boxes, targets, match(logits, boxes, targets)).total

    wanted = criterion(logits, boxes, targets)
    for mode in ("default", "reduce-overhead"):
        compiled = torch.compile(loss, fullgraph=True, mode=mode)
        for _ in range(3):
            leaves = (logits.detach().requires_grad_(), boxes.detach().requires_grad_())
            total = compiled(*leaves, targets)
            gradients = torch.autograd.grad(total, leaves)
            for mine, other in zip((total, *gradients), (wanted[2], *wanted[-2:]), strict=True):
                assert torch.equal(mine, other)


def test_bad_numbers_stay_within_their_problem() -> None:
    logits, boxes, targets = make(SIZES[2], seed=10)
    clean = match(logits, boxes, targets)
    logits[2, 3, 5:] = math.nan
    matched, status = solve_matching(logits, boxes, targets)
    untouched = torch.ones(status.shape, dtype=torch.bool, device="cuda")
    untouched[2, 3] = False
    assert torch.equal(matched[untouched], clean[untouched])
    assert not status[untouched].any()
    if targets.counts[3] > 5:
        assert status[2, 3].item() == 3


@pytest.mark.skipif(not HAS_CPP, reason="the C++ kernels were not built")
@pytest.mark.parametrize("size", [SIZES[1], SIZES[-1]], ids=str)
def test_the_cpp_kernels_take_a_copy_there_and_back(size: tuple[Any, ...]) -> None:
    """And are what "auto" takes where Triton cannot run."""
    logits, boxes, targets = make(size, seed=17)
    on_host = (logits.cpu(), boxes.cpu(), targets.to("cpu"))

    def everything(logits: Tensor, boxes: Tensor, targets: Targets | Tubelets, backend: Any) -> list[Tensor]:
        logits, boxes = (value.detach().requires_grad_() for value in (logits, boxes))
        matched, status = solve_matching(logits, boxes, targets, backend=backend)
        losses = set_loss(logits, boxes, targets, matched, backend=backend)
        cost = pairwise_cost(logits, boxes, targets, backend=backend).detach()
        solution = solve_assignment(cost.flatten(0, 1), backend=backend)
        return [matched, status, cost, *solution, *losses, *torch.autograd.grad(losses.total, [logits, boxes])]

    wanted = everything(*on_host, "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actdet_kernels.backend._obstacle", lambda *_: "Triton cannot be imported")
        for backend in ("cpu", "auto"):
            got = everything(logits, boxes, targets, backend)
            assert all(value.is_cuda for value in got)
            for mine, theirs in zip(got, wanted, strict=True):
                torch.testing.assert_close(mine.cpu(), theirs, rtol=0, atol=0, equal_nan=True)


# frames of the pool, height, width, clips, frames of a clip
CLIPS = [(200, 224, 224, 24, 16), (200, 112, 112, 8, 16), (200, 48, 48, 8, 8), (9, 37, 53, 3, 35)]


def make_clips(size: tuple[int, int, int, int, int], seed: int) -> list[Tensor]:
    """frames, indices, crops, color, frame_means on the GPU; one index is no frame."""
    pool, indices, *changes = random_clips(size[:3], *size[3:], seed=seed)
    indices[-1, -1] = size[0]
    return [value.cuda() for value in (pool, indices, *changes, frame_levels(pool))]


def both(arguments: list[Tensor], dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """The batch with all changes, and without."""
    return [gather_clips(*arguments, dtype=dtype), gather_clips(*arguments[:2], dtype=dtype)]


@pytest.mark.parametrize("size", CLIPS, ids=str)
def test_real_clips_are_the_loops(size: tuple[int, int, int, int, int]) -> None:
    arguments = make_clips(size, seed=11)
    pool, indices, crops, color, frame_means = (value.cpu() for value in arguments)
    assert torch.equal(frame_levels(arguments[0]).cpu(), frame_means)
    few = slice(None, None, -(-len(indices) // 3))
    for changes in ((crops, color), (None, None)):
        wanted = torch.from_numpy(changed_clips(pool, indices[few], *(None if v is None else v[few] for v in changes)))
        error = clip_error(pool, *changes)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            used = arguments if changes[0] is not None else [*arguments[:2], None, None, arguments[4]]
            got = gather_clips(*used, dtype=dtype)
            assert got.is_contiguous(memory_format=torch.channels_last_3d)
            largest = wanted.nan_to_num().abs().max().item()
            rounding = 0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2 * largest
            torch.testing.assert_close(got[few].cpu().double(), wanted, rtol=0, atol=error + rounding, equal_nan=True)


@pytest.mark.parametrize("size", CLIPS, ids=str)
def test_clips_do_not_wait_and_replay_from_a_graph(
    size: tuple[int, int, int, int, int], refuse_waiting: Callable[[bool], None]
) -> None:
    arguments = make_clips(size, seed=12)
    # Triton compiles.
    both(arguments)
    refuse_waiting(True)
    both(arguments)
    gather_clips(*arguments, backend="reference")
    refuse_waiting(False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both(arguments)
    for seed in (13, 14):
        others = make_clips(size, seed=seed)
        for mine, other in zip(arguments, others, strict=True):
            mine.copy_(other)
        graph.replay()
        for mine, wanted in zip(captured, both(others), strict=True):
            assert torch.equal(mine.view(torch.int16), wanted.view(torch.int16))  # NaN, too


def test_a_batch_of_clips_takes_one_launch() -> None:
    arguments = make_clips(CLIPS[1], seed=15)
    both(arguments)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        both(arguments)
    on_device = launched(profile)
    assert len(on_device) == 2, on_device


# samples, channels, frames, side
NORMS = [(8, 48, 8, 28), (2, 1152, 2, 7), (3, 45, 1, 5)]


def normalized(
    x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor, d_y: Tensor, mean: Tensor, var: Tensor
) -> list[Tensor]:
    """y and the gradients, without and with a shortcut; `mean` and `var` are moved."""
    found = []
    leaves = [value.detach().requires_grad_() for value in (x, weight, bias, shortcut)]
    for added in (None, leaves[3]):
        y = batch_norm(*leaves[:3], running_mean=mean, running_var=var, shortcut=added, relu=True)
        found += [y.detach(), *torch.autograd.grad(y, leaves[:3] if added is None else leaves, d_y)]
    return found


def make_features(size: tuple[int, ...], seed: int) -> list[Tensor]:
    """x, weight, bias, a shortcut, the gradient of y, and running statistics."""
    samples, channels, frames, side = size
    generator = torch.Generator("cuda").manual_seed(seed)
    x, shortcut, d_y = (
        torch.randn(samples * frames, side, side, channels, generator=generator, device="cuda").bfloat16()
        for _ in range(3)
    )
    weight, bias, mean, var = (torch.rand(channels, generator=generator, device="cuda") for _ in range(4))
    return [x.movedim(-1, 1), weight, bias, shortcut.movedim(-1, 1), d_y.movedim(-1, 1), mean, var]


@pytest.mark.parametrize("size", NORMS, ids=str)
def test_batch_norm_does_not_wait_and_replays_from_a_graph(
    size: tuple[int, ...], refuse_waiting: Callable[[bool], None]
) -> None:
    arguments = make_features(size, seed=18)
    # Triton compiles.
    normalized(*arguments)
    refuse_waiting(True)
    normalized(*arguments)
    refuse_waiting(False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = normalized(*arguments)
    for seed in (19, 20):
        others = make_features(size, seed=seed)
        for mine, other in zip(arguments, others, strict=True):
            mine.copy_(other)
        graph.replay()
        for mine, wanted in zip(captured, normalized(*others), strict=True):
            assert torch.equal(mine, wanted)
        for mine, wanted in zip(arguments[5:], others[5:], strict=True):
            assert torch.equal(mine, wanted)


def test_pools_and_batches_may_have_more_than_two_gigabytes() -> None:
    """Both the pool's bytes and the batch's values are more than 2**31."""
    size = 2**31 // (224 * 224 * 3) + 2
    pool = torch.zeros(size, 224, 224, 3, dtype=torch.uint8, device="cuda")
    some, *_ = random_clips((2, 224, 224), 1, 1, seed=16)
    pool[-2:] = some.cuda()
    indices = torch.zeros(1, size, dtype=torch.int64, device="cuda")
    indices[0, -2:] = torch.tensor([size - 2, size - 1])
    got = gather_clips(pool, indices, dtype=torch.float16)
    wanted = gather_clips(some, torch.tensor([[0, 1]]), dtype=torch.float16)
    torch.testing.assert_close(got[:, :, -2:].cpu(), wanted, rtol=2**-10, atol=1e-6)
    black = got[0, :, :-2]
    assert torch.equal(black.amin((1, 2, 3)), black.amax((1, 2, 3)))
    assert (black[:, 0, 0, 0] < -1.7).all()
