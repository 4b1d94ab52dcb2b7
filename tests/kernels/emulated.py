"""Runs the compiled PTX of every kernel in the emulator, against the oracles.

A process of its own, because kernels that were imported under TRITON_INTERPRET=1 cannot be compiled:

    python -m tests.kernels.emulated CAPABILITY MODE SEED [WORD] [--large]

Prints, for each case whose name begins with WORD, a line of JSON with what was wrong, which is empty if nothing was.
MODE is one of the emulator's, "lockstep" or "warps", or "barriers": what was noticed when each of the barriers that a
case runs was weakened, which must be something. With --large, the cases are of the sizes that a DETR is trained with.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import numpy as np
import torch
import torch.nn.functional as F
from actdet_kernels import (
    CenterLoss,
    CenterMaps,
    MatchWeights,
    Tubelets,
    batch_norm,
    center_loss,
    center_peaks,
    deformable_attention,
    frame_levels,
    gather_clips,
    match,
    pairwise_cost,
    set_loss,
    solve_assignment,
    suppress_overlaps,
)
from actdet_kernels.backend import Backend
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tests.kernels.needed_barriers import logged, needed_barriers
from tests.kernels.oracles import (
    center_terms,
    changed_clips,
    clip_error,
    costs,
    criterion,
    frame_costs,
    frame_criterion,
    loss_case,
    random_boxes,
    random_clips,
    random_logits,
    random_targets,
    random_tubelets,
    sigmoid_class_costs,
    sigmoid_class_loss,
    sum_over_pixels,
    tubelet_costs,
    weighted_sum,
    with_frame_labels,
)
from tests.kernels.peak_oracles import MapShape, check_peaks, peaks_by_loops, random_maps
from tests.kernels.ptxsim import launch
from tests.kernels.ptxsim.generator import Generator
from tests.kernels.ptxsim.launch import Emulator
from tests.kernels.ptxsim.machine import WARP
from tests.kernels.ptxsim.memory import Fault
from tests.kernels.suppression_oracles import kept_by_loops, random_overlaps

WEIGHTS = MatchWeights(1.3, 4.1, 0.7)
FEW = [5, 0, 3]
FP16, BF16, FP32, FP64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


def cheapest(cost: Tensor, chosen: Tensor, count: int) -> None:
    """The rows chosen for the first `count` columns of a cost (N, M) are one-to-one and as cheap as SciPy's."""
    pairs = [(row, column) for column, row in enumerate(chosen.tolist()) if row != -1]
    assert all(0 <= row < len(cost) and column < count for row, column in pairs), pairs
    assert len({row for row, _ in pairs}) == len(pairs) == min(len(cost), count), pairs

    matrix = cost[:, :count].double().numpy()
    best = matrix[linear_sum_assignment(matrix)].sum()
    got = sum(matrix[pair] for pair in pairs)
    # The kernel's costs are rounded to float32: at most ten roundings of a cost in each pair.
    scale = max(1.0, float(np.abs(matrix).max(initial=0)))
    assert got - best <= 20 * len(pairs) * torch.finfo(FP32).eps * scale, f"{got}, SciPy has {best}"


def assign_case(rows: int, columns: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rows + columns)
    cost = torch.rand(2, rows, columns, generator=generator, dtype=FP64).to(dtype)
    # Many ties in the second.
    cost[1] = (4 * cost[1]).round()
    counts = torch.tensor([columns, columns // 2])
    solution = solve_assignment(cost, counts, backend="triton")
    for problem, count in enumerate(counts.tolist()):
        cheapest(cost[problem], solution.row_of_column[problem], count)
    assert solution.status.tolist() == [0, 0], solution.status


def cost_case(
    dtype: torch.dtype,
    kind: Any,
    frames: int | None = None,
    queries: int = 20,
    classes: int = 7,
    counts: Sequence[int] = (5, 2, 0),
    gamma: float = 2.0,
    box_term: Any = "giou",
    each_frame: bool = False,
    most: int = 0,
) -> None:
    """`most`: how many labels a target has in each frame at most, if they are not those of the whole tubelet."""
    tube = () if frames is None else (frames,)
    logits = random_logits(len(counts), queries, *(tube if each_frame else ()), classes, seed=1, dtype=dtype)
    boxes = random_boxes(len(counts), queries, *tube, seed=1, dtype=dtype)
    if frames is None:
        targets = random_targets(list(counts), max(counts), classes - 1, seed=1)
        wanted = costs(logits, boxes, targets, WEIGHTS, kind, gamma=gamma, box_term=box_term)
    else:
        targets = random_tubelets(list(counts), max(counts), frames, classes - 1, seed=1)
        if most:
            targets = with_frame_labels(targets, classes - 1, most)
        wanted = (
            frame_costs(logits, boxes, targets, WEIGHTS, kind)
            if each_frame
            else tubelet_costs(logits, boxes, targets, WEIGHTS, kind, box_term)
        )
    options: Any = {"weights": WEIGHTS, "class_cost": kind, "gamma": gamma, "box_term": box_term}
    got = pairwise_cost(logits, boxes, targets, **options, backend="triton")
    eps = torch.finfo(torch.promote_types(dtype, FP32)).eps
    torch.testing.assert_close(got.double(), wanted, rtol=torch.finfo(dtype).eps + 16 * eps, atol=32 * eps)


def match_case(queries: int, size: int, classes: int, dtype: torch.dtype, kind: Any) -> None:
    counts = [size, size // 2]
    logits = random_logits(2, queries, classes, seed=2, dtype=dtype)
    boxes = random_boxes(2, queries, seed=2, dtype=dtype)
    targets = random_targets(counts, size, classes - 1, seed=2)
    wanted = costs(logits, boxes, targets, WEIGHTS, kind)
    matched = match(logits, boxes, targets, weights=WEIGHTS, class_cost=kind, backend="triton")
    for sample, count in enumerate(counts):
        cheapest(wanted[sample], matched[sample], count)


def several_labels(targets: Any) -> Any:
    """The same targets, every other of which has one label more."""
    more = torch.where(torch.arange(targets.labels.shape[1]) % 2 == 0, (targets.labels + 1) % 3, -1)
    return targets._replace(labels=torch.stack([targets.labels, more], dim=-1))


def sigmoid_case(queries: int, dtype: torch.dtype, kind: Any, several: bool) -> None:
    """Costs and matching, of more queries than targets and of fewer."""
    counts = [5, 2, 0]
    logits = random_logits(3, queries, 7, seed=1, dtype=dtype)
    boxes = random_boxes(3, queries, seed=1, dtype=dtype)
    targets = random_targets(counts, 5, 3, seed=1)
    wanted = costs(logits, boxes, targets, WEIGHTS._replace(cls=0), "softmax")
    targets = several_labels(targets) if several else targets
    wanted += WEIGHTS.cls * sigmoid_class_costs(logits, boxes.double(), targets, kind, 0.25, 2.0)
    options: Any = {"weights": WEIGHTS, "class_cost": kind, "backend": "triton"}
    eps = torch.finfo(torch.promote_types(dtype, FP32)).eps
    got = pairwise_cost(logits, boxes, targets, **options)
    torch.testing.assert_close(got.double(), wanted, rtol=torch.finfo(dtype).eps + 16 * eps, atol=32 * eps)
    for sample, chosen in enumerate(match(logits, boxes, targets, **options)):
        cheapest(wanted[sample], chosen, counts[sample])


def loss_and_gradient_case(
    queries: int,
    classes: int,
    counts: list[int],
    dtype: torch.dtype,
    kind: Any,
    gamma: float = 2.0,
    box_term: Any = "giou",
    weighted: bool = False,
    several: bool = False,
) -> None:
    """`counts`: the number of each sample's targets, which are padded to one more than the largest."""
    logits, boxes, targets, matched = loss_case((2,), queries, classes, counts, max(counts) + 1, kind)
    # Both sides start from what the kernel's type can hold.
    logits, boxes = (value.to(dtype).requires_grad_() for value in (logits, boxes))
    exact_logits, exact_boxes = (value.detach().to(FP64).requires_grad_() for value in (logits, boxes))
    weights = torch.linspace(0.5, 2, classes) if weighted else None
    options: Any = {"gamma": gamma, "box_term": box_term, "class_weights": weights}
    wanted = targets
    targets = several_labels(targets) if several else targets
    got = set_loss(logits, boxes, targets, matched, weights=WEIGHTS, class_loss=kind, **options, backend="triton")
    terms = criterion(exact_logits, exact_boxes, wanted, matched, 0.1, kind, **options)
    if several or kind in ("varifocal", "quality_focal"):
        cls = sigmoid_class_loss(exact_logits, exact_boxes, targets, matched, kind, 0.25, gamma)
        terms = (cls, *terms[1:])
    total = weighted_sum(WEIGHTS, terms)

    eps = torch.finfo(torch.promote_types(dtype, FP32)).eps
    for mine, theirs in zip(got, (total, *terms), strict=True):
        torch.testing.assert_close(mine.detach().double(), theirs.detach().double(), rtol=64 * eps, atol=64 * eps)

    got.total.backward()
    total.backward()
    for mine, theirs in ((logits, exact_logits), (boxes, exact_boxes)):
        assert mine.grad is not None
        assert theirs.grad is not None
        scale = float(theirs.grad.abs().max())
        tolerance = torch.finfo(dtype).eps + 64 * eps
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=tolerance, atol=tolerance * scale)


def frame_loss_case(classes: int, dtype: torch.dtype, kind: Any, most: int = 0) -> None:
    """Logits of each of three frames; `most` as in `cost_case`."""
    _, _, targets, matched = loss_case((2,), 20, classes, FEW, max(FEW) + 1, kind)
    tubelets = random_tubelets(FEW, max(FEW) + 1, 3, classes, seed=5)._replace(labels=targets.labels)
    if most:
        tubelets = with_frame_labels(tubelets, classes - 1, most)
    logits = random_logits(2, len(FEW), 20, 3, classes, seed=7).to(dtype).requires_grad_()
    boxes = random_boxes(2, len(FEW), 20, 3, seed=8).to(dtype).requires_grad_()
    exact_logits, exact_boxes = (value.detach().to(FP64).requires_grad_() for value in (logits, boxes))
    got = set_loss(logits, boxes, tubelets, matched, weights=WEIGHTS, class_loss=kind, backend="triton")
    terms = frame_criterion(exact_logits, exact_boxes, tubelets, matched, 0.1, kind)
    total = weighted_sum(WEIGHTS, terms)

    eps = torch.finfo(torch.promote_types(dtype, FP32)).eps
    for mine, theirs in zip(got, (total, *terms), strict=True):
        torch.testing.assert_close(mine.detach().double(), theirs.detach().double(), rtol=64 * eps, atol=64 * eps)
    found = torch.autograd.grad(got.total, (logits, boxes))
    for mine, theirs in zip(found, torch.autograd.grad(total, (exact_logits, exact_boxes)), strict=True):
        tolerance = torch.finfo(dtype).eps + 64 * eps
        torch.testing.assert_close(mine.double(), theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


def clip_case(dtype: torch.dtype, crops: bool, color: bool, frames: tuple[int, int, int] = (6, 13, 21)) -> None:
    """`frames`: the number of cached frames, their height and their width."""
    pool, indices, all_crops, all_factors = random_clips(frames, 3, 5, seed=1)
    used_crops = all_crops if crops else None
    factors = all_factors if color else None
    got = gather_clips(pool, indices, used_crops, factors, frame_levels(pool), dtype=dtype, backend="triton")
    wanted = torch.from_numpy(changed_clips(pool, indices, used_crops, factors))
    rounding = 0.0 if dtype == FP32 else torch.finfo(dtype).eps
    error = clip_error(pool, used_crops, factors)
    torch.testing.assert_close(got.double(), wanted, rtol=rounding, atol=error, equal_nan=True)


def norm_case(rows: int, channels: int, dtype: torch.dtype, relu: bool, with_shortcut: bool = False) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, d_y, shortcut = (torch.randn(rows, channels, generator=generator).to(dtype) for _ in range(3))
    weight, bias = (torch.randn(channels, generator=generator) for _ in range(2))
    leaves = [value.requires_grad_() for value in (x, weight, bias, *([shortcut] if with_shortcut else []))]
    exact = [value.detach().double().requires_grad_() for value in leaves]
    wanted = F.batch_norm(exact[0], None, None, *exact[1:3], training=True)
    if with_shortcut:
        wanted = wanted + exact[3]
    # Not where rounding decides what the ReLU lets through.
    d_y[wanted.abs() < 1e-3] = 0
    wanted = F.relu(wanted) if relu else wanted
    gradients = torch.autograd.grad(wanted, exact, d_y.double())

    got = batch_norm(*leaves[:3], shortcut=leaves[3] if with_shortcut else None, relu=relu, backend="triton")
    found = [got, *torch.autograd.grad(got, leaves, d_y)]
    rounding = 0.0 if dtype == FP32 else torch.finfo(dtype).eps
    for mine, true in zip(found, [wanted, *gradients], strict=True):
        torch.testing.assert_close(mine.detach().double(), true.detach(), rtol=rounding, atol=1e-4)


def attention_case(
    queries: int, features: int, dtype: torch.dtype, masked: bool = False, deterministic: bool = True
) -> None:
    generator = torch.Generator().manual_seed(queries)
    sizes = [(3, 4), (2, 2)]
    values = torch.randn(2, 16, 3, features, generator=generator, dtype=FP64).to(dtype)
    points = 1.2 * torch.rand(2, queries, 3, 2, 2, 2, generator=generator) - 0.1
    weights = torch.rand(2, queries, 3, 2, 2, generator=generator)
    mask = torch.rand(2, 16, generator=generator) > 0.3 if masked else None
    d_out = torch.randn(2, queries, 3 * features, generator=generator).to(dtype)

    leaves = [value.requires_grad_() for value in (values, points, weights)]
    exact = [value.detach().double().requires_grad_() for value in leaves]
    wanted = sum_over_pixels(*exact, sizes=sizes, mask=mask)
    gradients = torch.autograd.grad(wanted, exact, d_out.double())
    got = deformable_attention(*leaves, sizes=sizes, mask=mask, deterministic=deterministic, backend="triton")
    found = [got, *torch.autograd.grad(got, leaves, d_out)]
    for mine, true in zip(found, [wanted, *gradients], strict=True):
        torch.testing.assert_close(mine.detach().double(), true.detach(), rtol=torch.finfo(mine.dtype).eps, atol=2e-5)


def center_case(shape: MapShape, dtype: torch.dtype, counts: Sequence[int] = (3, 2), **options: Any) -> None:
    """The loss against loops in double precision, and its gradient against the reference's."""
    maps = random_maps(shape, seed=1, dtype=dtype)
    maps = maps._replace(sizes=maps.sizes.abs())
    generator = torch.Generator().manual_seed(2)
    rows = max(counts)
    labels = torch.randint(3, (shape.batch, rows), generator=generator)
    boxes = random_boxes(shape.batch, rows, shape.frames, seed=3, dtype=FP32)
    visible = torch.rand(shape.batch, rows, shape.frames, generator=generator) < 0.8
    targets = Tubelets(labels, boxes, torch.tensor(counts[: shape.batch]), visible)

    def computed(dtype: torch.dtype, backend: Backend) -> tuple[CenterLoss, list[Tensor]]:
        """The loss, and the gradients of the maps."""
        inputs = [None if each is None else each.to(dtype, copy=True).requires_grad_() for each in maps]
        centers, movement, sizes, classes = inputs
        assert centers is not None
        assert movement is not None
        assert sizes is not None
        loss = center_loss(CenterMaps(centers, movement, sizes, classes), targets, backend=backend, **options)
        leaves = [each for each in inputs if each is not None]
        return loss, list(torch.autograd.grad(loss.total + 0.3 * loss.sizes, leaves))

    mine, my_gradients = computed(dtype, "triton")
    _, gradients = computed(FP64, "reference")

    terms, divisors = center_terms(maps, targets, **options)
    rounding = max(torch.finfo(dtype).eps, 1e-6) if dtype != FP64 else 1e-10
    np.testing.assert_allclose([value.item() for value in mine[1:5]], terms, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mine.divisors.numpy(), [max(divisors[0], 1), *divisors[1:]], rtol=1e-4)
    for got, wanted in zip(my_gradients, gradients, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=4 * rounding, atol=1e-6)


def peak_case(shape: MapShape, dtype: torch.dtype, values: int = 0, peaks: int = 4, moved: bool = True) -> None:
    """`values`: how many different logits there are, among them zeros of either sign."""
    maps = random_maps(shape, values=values, seed=1, dtype=dtype)
    if values:
        maps.centers[..., ::2][maps.centers[..., ::2] == 0] = -0.0
    maps.centers[0, 0, 0, :2] = torch.tensor([torch.nan, torch.inf])
    got = center_peaks(maps, peaks=peaks, moved=moved, backend="triton")
    check_peaks(got, peaks_by_loops(maps, peaks, moved), maps)


def suppression_case(shape: tuple[int, int, int, int], dtype: torch.dtype, values: int = 0) -> None:
    """`values`: how many different scores there are."""
    boxes, scores = random_overlaps(shape, seed=1, values=values, dtype=dtype)
    boxes[0, 0, 0, 1] = torch.nan
    scores[0, -1] = torch.tensor(torch.nan)
    got = suppress_overlaps(boxes, scores, iou_threshold=0.4, backend="triton")
    assert torch.equal(got, kept_by_loops(boxes, scores, 0.4, 0.0))


CASES: dict[str, Callable[[], None]] = {
    "assign 12x5 bf16": lambda: assign_case(12, 5, BF16),
    "assign 5x12 fp32": lambda: assign_case(5, 12, FP32),
    "assign 40x12 fp64": lambda: assign_case(40, 12, FP64),
    "assign 130x12 fp32": lambda: assign_case(130, 12, FP32),
    "cost softmax fp32": lambda: cost_case(FP32, "softmax"),
    "cost focal bf16": lambda: cost_case(BF16, "focal"),
    "cost gamma fp32": lambda: cost_case(FP32, "focal", gamma=1.5),
    "cost tubelets fp64": lambda: cost_case(FP64, "softmax", frames=3),
    "cost ciou tubelets fp32": lambda: cost_case(FP32, "softmax", frames=3, box_term="ciou"),
    "cost frame logits fp32": lambda: cost_case(FP32, "softmax", frames=3, each_frame=True),
    "cost frame logits focal bf16": lambda: cost_case(BF16, "focal", frames=3, each_frame=True),
    "cost frame labels bf16": lambda: cost_case(BF16, "focal", frames=3, each_frame=True, most=3),
    "match 12x5 softmax fp32": lambda: match_case(12, 5, 3, FP32, "softmax"),
    "match 36x6 focal bf16": lambda: match_case(36, 6, 20, BF16, "focal"),
    "match quality_focal fp32": lambda: sigmoid_case(9, FP32, "quality_focal", several=False),
    "match several labels bf16": lambda: sigmoid_case(3, BF16, "focal", several=True),
    "loss several labels fp32": lambda: loss_and_gradient_case(12, 4, FEW, FP32, "focal", several=True),
    "loss cross_entropy fp32": lambda: loss_and_gradient_case(12, 4, FEW, FP32, "cross_entropy"),
    "loss focal bf16": lambda: loss_and_gradient_case(20, 20, FEW, BF16, "focal"),
    "loss gamma fp32": lambda: loss_and_gradient_case(12, 4, FEW, FP32, "focal", gamma=1.5),
    "loss ciou fp32": lambda: loss_and_gradient_case(12, 4, FEW, FP32, "cross_entropy", box_term="ciou"),
    "loss weights fp32": lambda: loss_and_gradient_case(12, 4, FEW, FP32, "cross_entropy", weighted=True),
    "loss weights focal bf16": lambda: loss_and_gradient_case(20, 20, FEW, BF16, "focal", weighted=True),
    "loss varifocal fp32": lambda: loss_and_gradient_case(12, 4, FEW, FP32, "varifocal", gamma=1.5),
    "loss quality_focal fp32": lambda: loss_and_gradient_case(12, 4, FEW, FP32, "quality_focal"),
    "loss frame logits fp32": lambda: frame_loss_case(4, FP32, "cross_entropy"),
    "loss frame logits focal bf16": lambda: frame_loss_case(20, BF16, "focal"),
    "loss frame labels fp32": lambda: frame_loss_case(20, FP32, "focal", most=3),
    "clips bf16": lambda: clip_case(BF16, crops=True, color=True),
    "clips fp32": lambda: clip_case(FP32, crops=True, color=False),
    "norm 130x24 bf16": lambda: norm_case(130, 24, BF16, relu=True),
    "norm 130x24 bf16 shortcut": lambda: norm_case(130, 24, BF16, relu=True, with_shortcut=True),
    "norm 70x65 fp32": lambda: norm_case(70, 65, FP32, relu=False),
    "attention 5x16 fp32": lambda: attention_case(5, 16, FP32, masked=True),
    "attention 3x1 fp32 any order": lambda: attention_case(3, 1, FP32, deterministic=False),
    "attention 40x32 bf16": lambda: attention_case(40, 32, BF16),
    "attention 4x5 fp64": lambda: attention_case(4, 5, FP64, masked=True),
    "centers 9x7 fp32": lambda: center_case(MapShape(2, 1, 9, 7, 3, (3, 3, 2)), FP32),
    "centers 20x14 bf16 circles": lambda: center_case(
        MapShape(1, 1, 20, 14, 2, (3, 1, 1)), BF16, radius="corrected", movement_area="circle", moved=False, key=0
    ),
    "centers 17x16 fp64 channels": lambda: center_case(MapShape(1, 3, 17, 16, 1), FP64, [9], size_area="center"),
    "peaks 9x7 fp32": lambda: peak_case(MapShape(2, 2, 9, 7, 3, (5, 3, 2)), FP32),
    "peaks 5x6 bf16 ties": lambda: peak_case(MapShape(1, 1, 5, 6, 2, (3, 7, 6)), BF16, values=3, peaks=9),
    "peaks 34x33 fp64 in place": lambda: peak_case(MapShape(1, 1, 34, 33, 2), FP64, moved=False),
    "suppression 40 fp32": lambda: suppression_case((2, 40, 1, 3), FP32),
    "suppression 11 bf16 ties": lambda: suppression_case((1, 11, 4, 2), BF16, values=3),
    "suppression 140 fp64": lambda: suppression_case((1, 140, 2, 1), FP64),
}

# Of the sizes of a DETR that is trained on COCO: solvers of several warps, blocks of 64 classes, many programs.
LARGE_CASES: dict[str, Callable[[], None]] = {
    "assign 300x100 fp32": lambda: assign_case(300, 100, FP32),
    "cost 100x20 softmax fp64": lambda: cost_case(FP64, "softmax", queries=100, classes=92, counts=[20, 7]),
    "match 100x20 softmax fp32": lambda: match_case(100, 20, 92, FP32, "softmax"),
    "match 100x20 focal bf16": lambda: match_case(100, 20, 91, BF16, "focal"),
    "loss 100x20 cross_entropy fp32": lambda: loss_and_gradient_case(100, 92, [20, 7], FP32, "cross_entropy"),
    "loss 100x20 focal bf16": lambda: loss_and_gradient_case(100, 91, [20, 7], BF16, "focal"),
    "clips 64x64 bf16": lambda: clip_case(BF16, crops=True, color=True, frames=(6, 64, 64)),
    "norm 900x144 bf16": lambda: norm_case(900, 144, BF16, relu=True),
    "attention 100x32 fp32": lambda: attention_case(100, 32, FP32),
    "centers 72x72 fp32": lambda: center_case(MapShape(1, 1, 72, 72, 2, (3, 9, 9)), FP32, [8]),
    "peaks 72x72 fp32": lambda: peak_case(MapShape(1, 1, 72, 72, 5, (24, 18, 18)), FP32, peaks=10),
    "suppression 245 fp32": lambda: suppression_case((1, 245, 1, 4), FP32),
}

# Where each barrier is needed: a solver's columns lie in several warps, a loop over targets takes two rounds, and
# several warps read the pixel of a peak.
BARRIER_CASES: dict[str, Callable[[], None]] = {
    "assign 130x12 fp32": lambda: assign_case(130, 12, FP32),
    "cost softmax fp32": lambda: cost_case(FP32, "softmax"),
    "match 60x20 focal bf16": lambda: match_case(60, 20, 20, BF16, "focal"),
    "loss 34x33 cross_entropy fp32": lambda: loss_and_gradient_case(34, 4, [33], FP32, "cross_entropy"),
    "attention 5x16 fp32": lambda: attention_case(5, 16, FP32, masked=True),
    "peaks 5x4 fp32": lambda: peak_case(MapShape(1, 1, 5, 4, 50), FP32, peaks=3),
    "suppression 300 fp32": lambda: suppression_case((1, 300, 1, 1), FP32),
    "norm 70x65 fp32": CASES["norm 70x65 fp32"],
    "centers 9x7 fp32": CASES["centers 9x7 fp32"],
}


def wrong_with(case: Callable[[], None], emulator: Emulator) -> str:
    try:
        with emulator.active():
            case()
    except (AssertionError, Fault, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    if not emulator.records:
        return "nothing was launched"
    return "; ".join(f"{count} x {' / '.join(key)}" for key, count in emulator.races().items())


def without_each_barrier(capability: int, name: str) -> dict[str, str]:
    """Weakens the barriers that a case needs one by one, and says what the emulator noticed of it.

    A barrier becomes one of each warp alone, which leaves what it orders within a warp as it was. So those of programs
    with one warp are left out: nothing would change.
    """
    case = BARRIER_CASES[name]
    launch.COMPILED.clear()
    emulator = Emulator(capability)
    with emulator.active(), logged() as logs:
        case()
    assert not emulator.races()

    needed: dict[Generator, set[int]] = defaultdict(set)
    for machine, log in logs.items():
        needed[machine.generator] |= needed_barriers(log)

    noticed = {}
    for key, (generator, shared) in list(launch.COMPILED.items()):
        program = generator.program
        if program.threads == WARP:
            continue
        for index in sorted(needed[generator]):
            barrier = program.instructions[index]
            mutant = list(program.instructions)
            mutant[index] = replace(barrier, opcode="bar.warp.sync", operands=["-1"])
            launch.COMPILED[key] = Generator(replace(program, instructions=mutant)), shared
            found = noticed_of(case, Emulator(capability), emulator.findings())
            noticed[f"{name}: {program.name} line {barrier.line}"] = found
        launch.COMPILED[key] = generator, shared
    return noticed


def noticed_of(case: Callable[[], None], emulator: Emulator, before: Counter) -> str:
    """The kinds of findings that are not there with all barriers, or the fault; "" if there are none.

    They may be of accesses that agree on the value, which chance may have. For the same reason a wrong result is not
    enough.
    """
    try:
        with emulator.active(), suppress(AssertionError):
            case()
    except Fault as fault:
        return str(fault)
    return ", ".join(sorted({kind for kind, *_ in emulator.findings().keys() - before.keys()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("capability", type=int, help="the architecture to compile for, 90 for sm_90")
    parser.add_argument("mode", choices=["lockstep", "warps", "barriers"])
    parser.add_argument("seed", type=int, help="of the random order of warps")
    parser.add_argument("word", nargs="?", default="", help="what the names of the cases begin with")
    parser.add_argument("--large", action="store_true", help="run the cases of real sizes, not the small ones")
    options = parser.parse_args()

    if options.mode == "barriers":
        for name in BARRIER_CASES:
            if name.startswith(options.word):
                print(json.dumps(without_each_barrier(options.capability, name)), flush=True)
        return
    for name, case in (LARGE_CASES if options.large else CASES).items():
        if name.startswith(options.word):
            found = wrong_with(case, Emulator(options.capability, options.mode, options.seed))
            print(json.dumps({name: found}), flush=True)


if __name__ == "__main__":
    main()
