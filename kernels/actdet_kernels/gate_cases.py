"""The cases of the gates: calls that launch every kernel in each of its forms, and the registers that each may take.

A case is a call of an operation of `actdet_kernels.triton` on tensors without data. A new kernel needs one more line in
CASES. `actdet_kernels.gates` compiles what the calls would launch.

Assignments of more than 2048 rows or columns are no case, because those of 4096 spill on sm_60, sm_70 and sm_120.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from actdet_kernels.centers import CenterMaps
from actdet_kernels.options import CenterOptions, CostOptions, LossOptions
from actdet_kernels.targets import Targets, Tubelets
from actdet_kernels.triton import assignment, centers, clips, cost, deformable, loss, matching, norm, peaks, suppression

WEIGHTS = (2.0, 5.0, 2.0)
FP16, BF16, FP32, FP64, I8, U8, I32, I64, BOOL = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool,
)  # fmt: skip


class Case(NamedTuple):
    """A call, and how many registers a thread of each kernel that it launches may take.

    A limit is a step: the most registers with which so many warps fit in the 65,536 registers of a multiprocessor. No
    architecture exceeded it with any Triton from 3.3 to 3.9. Counts move from one version of Triton to the next, and
    within a step that does not change how many warps run.

    Args:
        inputs: What the call is about, for people.
        call: Calls an operation of `actdet_kernels.triton` on tensors of the device "meta".
        limits: The most registers of a thread, by the name of the kernel.
        least_capability: The least architecture for which the operation launches kernels.
    """

    inputs: str
    call: Callable[[], object]
    limits: dict[str, int]
    least_capability: int = 60


def tensor(dtype: torch.dtype, *shape: int) -> Tensor:
    """Return a tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta")


class Predictions(NamedTuple):
    """The first arguments of cost, matching and loss."""

    logits: Tensor
    boxes: Tensor
    targets: Targets | Tubelets


def predictions(
    queries: int,
    classes: int,
    logits: torch.dtype,
    boxes: torch.dtype,
    layers: tuple[int, ...] = (),
    labels: tuple[int, ...] = (),
) -> Predictions:
    """Return one sample of 8 targets, without data.

    Args:
        queries: The number of queries.
        classes: The number of logits.
        logits: The dtype of the logits.
        boxes: The dtype of the predicted boxes.
        layers: The leading dimensions.
        labels: (K,) if a target has K labels, and () if it has one.
    """
    targets = Targets(tensor(I64, 1, 8, *labels), tensor(FP32, 1, 8, 4), tensor(I32, 1))
    return Predictions(tensor(logits, *layers, 1, queries, classes), tensor(boxes, *layers, 1, queries, 4), targets)


def tubelets(
    dtype: torch.dtype, frames_of_logits: tuple[int, ...] = (), classes: int = 3, labels: tuple[int, ...] = ()
) -> Predictions:
    """Return one sample of 8 tubelets over 32 frames, under two layers, without data.

    Args:
        dtype: The dtype of logits and predicted boxes.
        frames_of_logits: (32,) if there are logits of each frame.
        classes: The number of logits.
        labels: (32, K) if a target has K labels in each frame, and () if it has one.
    """
    targets = Tubelets(tensor(I64, 1, 8, *labels), tensor(FP32, 1, 8, 32, 4), tensor(I64, 1), tensor(BOOL, 1, 8, 32))
    logits = tensor(dtype, 2, 1, 64, *frames_of_logits, classes)
    return Predictions(logits, tensor(dtype, 2, 1, 64, 32, 4), targets)


def pairwise_cost(class_cost: str, predictions: Predictions, gamma: float = 2.0, box_term: str = "giou") -> object:
    """Call the cost with these options, as the following functions call theirs."""
    options = CostOptions(WEIGHTS, class_cost, 0.25, gamma, box_term)
    return cost.pairwise_cost(*predictions, options, predictions.boxes.dtype)


def assign(rows: int, columns: int, dtype: torch.dtype, counts: Tensor | None = None, duals: bool = False) -> object:
    """Call the assignment of one problem."""
    return assignment.solve_assignment(tensor(dtype, 1, rows, columns), counts, maximize=False, duals=duals)


def match(
    queries: int,
    classes: int,
    class_cost: str,
    dtype: torch.dtype,
    gamma: float = 2.0,
    box_term: str = "giou",
    labels: tuple[int, ...] = (),
) -> object:
    """Call the matching of one sample."""
    inputs = predictions(queries, classes, dtype, dtype, labels=labels)
    return matching.match(*inputs, CostOptions(WEIGHTS, class_cost, 0.25, gamma, box_term))


def set_loss(
    class_loss: str,
    predictions: Predictions,
    per_layer: bool = False,
    gamma: float = 2.0,
    box_term: str = "giou",
    class_weights: Tensor | None = None,
) -> object:
    """Call the loss, and its gradient from that of the total."""
    matched = tensor(I64, 1, 8)
    options = LossOptions(WEIGHTS, 0.1, class_loss, 0.25, gamma, box_term, per_layer)
    *_, divisors = loss.set_loss(*predictions, matched, class_weights, options)
    cotangents = (tensor(divisors.dtype), None, None, None)
    return loss.set_loss_gradient(*predictions, matched, class_weights, divisors, cotangents, options)


def of_losses(loss: int, total: int, gradient: int) -> dict[str, int]:
    """Return the limits of a case of `set_loss`."""
    return {"set_loss_kernel": loss, "total_kernel": total, "gradient_kernel": gradient}


def gather_clips(dtype: torch.dtype, crops: bool = False, color: bool = False) -> object:
    """Call for 24 clips of 16 frames out of 100,000, which have 15 GB, so that offsets need 64 bits."""
    changes = (
        tensor(FP32, 24, 4) if crops else None,
        tensor(FP32, 24, 3) if color else None,
        tensor(FP32, 100_000) if color else None,
    )
    return clips.gather_clips(tensor(U8, 100_000, 224, 224, 3), tensor(I64, 24, 16), *changes, dtype)


def batch_norm(channels: int, dtype: torch.dtype, relu: bool, with_shortcut: bool = False) -> object:
    """Call the batch normalization of 8 clips' features after an R(2+1)D stem, and its gradient."""
    x = tensor(dtype, 8, channels, 16, 56, 56).to(memory_format=torch.channels_last_3d)
    compute = torch.promote_types(dtype, FP32)
    weight = tensor(compute, channels)
    bias = tensor(compute, channels)
    shortcut = torch.empty_like(x) if with_shortcut else None
    y, statistics = norm.batch_norm(x, weight, bias, shortcut, relu, 1e-5)
    return norm.batch_norm_gradient(y, x, weight, bias, shortcut, statistics, relu)


def of_norm(sums: int, apply: int, gradient_sums: int, gradient: int, small: int) -> dict[str, int]:
    """Return the limits of a case of `batch_norm`. `small` is that of both kernels that add up the sums."""
    limits = {"feature_sums_kernel": sums, "normalize_kernel": apply}
    limits |= {"gradient_sums_kernel": gradient_sums, "feature_gradient_kernel": gradient}
    return limits | {"statistics_kernel": small, "weight_gradient_kernel": small}


def deformable_attention(
    queries: int, features: int, dtype: torch.dtype, masked: bool = False, deterministic: bool = True
) -> object:
    """Call deformable attention of 8 heads over 4 levels and 4 points, as Deformable DETR has it, and its gradient."""
    sizes = (100, 134, 50, 67, 25, 34, 13, 17)
    pixels = sum(height * width for height, width in zip(sizes[::2], sizes[1::2], strict=True))
    values = tensor(dtype, 2, pixels, 8, features)
    points = tensor(dtype, 2, queries, 8, 4, 4, 2)
    weights = tensor(dtype, 2, queries, 8, 4, 4)
    mask = tensor(BOOL, 2, pixels) if masked else None
    out = deformable.deformable_attention(values, points, weights, sizes, mask)
    return deformable.deformable_attention_gradient(out, values, points, weights, sizes, mask, deterministic)


def of_centers(actors: int, loss: int, total: int, gradient: int) -> dict[str, int]:
    """Return the limits of the kernels that a center loss and its gradient launch."""
    return {
        "actors_kernel": actors,
        "center_loss_kernel": loss,
        "center_total_kernel": total,
        "center_gradient_kernel": gradient,
    }


def of_deformable(attention: int, gradient: int) -> dict[str, int]:
    """Return the limits of a case of `deformable_attention`."""
    limits = {"deformable_attention_kernel": attention, "deformable_gradient_kernel": gradient}
    return limits | {"from_integers_kernel": 64}


def center_loss(
    dtype: torch.dtype,
    channels: int = 1,
    classes: int = 24,
    *,
    radius: str = "published",
    movement_area: str = "ellipse",
    size_area: str = "ellipse",
    moved: bool = True,
    beta: float = 4.0,
) -> object:
    """Call the loss of a sample's maps of 72 x 72 pixels over 5 frames, and its gradient."""
    of_classes = tensor(dtype, 1, classes, 9, 9) if classes else None
    of_centers = tensor(dtype, 1, channels, 72, 72)
    maps = CenterMaps(of_centers, tensor(dtype, 1, 5, 2, 72, 72), tensor(dtype, 1, 5, 4, 72, 72), of_classes)
    targets = Tubelets(tensor(I64, 1, 8), tensor(FP32, 1, 8, 5, 4), tensor(I32, 1), tensor(BOOL, 1, 8, 5))
    options = CenterOptions((0.01, 1.0, 0.5, 0.05), 2, radius, movement_area, size_area, moved, 4, 2.0, beta)
    *losses, divisors = centers.center_loss(maps, targets, options)
    cotangents = (losses[0], None, None, None, None)
    return centers.center_loss_gradient(maps, targets, divisors, cotangents, options)


def center_peaks(dtype: torch.dtype, classes: bool = True, moved: bool = True) -> object:
    """Call for two samples of 5 frames on a grid of 72 x 72, as STMA has it, with 24 classes on one of 18 x 18."""
    maps = CenterMaps(tensor(dtype, 2, 1, 72, 72), tensor(dtype, 2, 5, 2, 72, 72), tensor(dtype, 2, 5, 4, 72, 72))
    return peaks.center_peaks(maps._replace(classes=tensor(dtype, 2, 24, 18, 18) if classes else None), 10, moved)


def suppress_overlaps(rows: int, dtype: torch.dtype, frames: int | None = None) -> object:
    """Call for two samples of 24 classes."""
    boxes = tensor(dtype, 2, rows, 4) if frames is None else tensor(dtype, 2, rows, frames, 4)
    return suppression.suppress_overlaps(boxes, tensor(dtype, 2, rows, 24), 0.5, 0.0)


CASES = [
    Case(
        "softmax, fp16 and fp32",
        lambda: pairwise_cost("softmax", predictions(100, 92, FP16, FP32)),
        {"pairwise_cost_kernel": 168},
    ),
    Case(
        "focal, bf16", lambda: pairwise_cost("focal", predictions(100, 91, BF16, BF16)), {"pairwise_cost_kernel": 168}
    ),
    Case(
        "softmax, fp64",
        lambda: pairwise_cost("softmax", predictions(100, 92, FP64, FP64)),
        {"pairwise_cost_kernel": 255},
    ),
    Case("tubelets, softmax, fp32", lambda: pairwise_cost("softmax", tubelets(FP32)), {"pairwise_cost_kernel": 168}),
    Case(
        "gamma 1.5, bf16",
        lambda: pairwise_cost("focal", predictions(100, 91, BF16, BF16), gamma=1.5),
        {"pairwise_cost_kernel": 168},
    ),
    Case(
        "tubelets, CIoU, fp32",
        lambda: pairwise_cost("softmax", tubelets(FP32), box_term="ciou"),
        {"pairwise_cost_kernel": 255},
    ),
    Case(
        "quality focal tubes, fp32",
        lambda: pairwise_cost("quality_focal", tubelets(FP32)),
        {"pairwise_cost_kernel": 168},
    ),
    Case(
        "frame logits, softmax, fp32",
        lambda: pairwise_cost("softmax", tubelets(FP32, (32,))),
        {"pairwise_cost_kernel": 168},
    ),
    Case(
        "frame labels, focal, bf16",
        lambda: pairwise_cost("focal", tubelets(BF16, (32,), 80, (32, 4))),
        {"pairwise_cost_kernel": 255},
    ),
    Case(
        "frame logits, focal, fp64",
        lambda: pairwise_cost("focal", tubelets(FP64, (32,), 80)),
        {"pairwise_cost_kernel": 255},
    ),
    Case(
        "several labels, bf16",
        lambda: pairwise_cost("focal", predictions(100, 80, BF16, BF16, labels=(4,))),
        {"pairwise_cost_kernel": 168},
    ),
    Case("12 x 5, bf16", lambda: assign(12, 5, BF16), {"assign_kernel": 96}),
    Case("100 x 63, fp32, duals", lambda: assign(100, 63, FP32, tensor(I64, 1), duals=True), {"assign_kernel": 128}),
    Case("100 x 63, fp64, duals", lambda: assign(100, 63, FP64, duals=True), {"assign_kernel": 168}),
    Case("300 x 100, fp32", lambda: assign(300, 100, FP32), {"assign_kernel": 128}),
    Case("1024 x 1024, fp32", lambda: assign(1024, 1024, FP32), {"assign_kernel": 168}),
    Case("2000 x 63, fp32", lambda: assign(2000, 63, FP32, tensor(I32, 1)), {"assign_kernel": 255}),
    Case("2000 x 63, fp64, duals", lambda: assign(2000, 63, FP64, duals=True), {"assign_kernel": 255}),
    Case("12 queries, softmax, fp32", lambda: match(12, 3, "softmax", FP32), {"match_kernel": 168}),
    Case("100 queries, softmax, bf16", lambda: match(100, 92, "softmax", BF16), {"match_kernel": 255}),
    Case("300 queries, softmax, fp32", lambda: match(300, 92, "softmax", FP32), {"match_kernel": 255}),
    Case("200 queries, focal, fp64", lambda: match(200, 91, "focal", FP64), {"match_kernel": 255}),
    Case("900 queries, focal, fp16", lambda: match(900, 91, "focal", FP16), {"match_kernel": 128}),
    Case("900 queries, softmax, fp32", lambda: match(900, 92, "softmax", FP32), {"match_kernel": 128}),
    Case("200 queries, gamma 1.5, fp64", lambda: match(200, 91, "focal", FP64, gamma=1.5), {"match_kernel": 255}),
    Case("300 queries, CIoU, fp32", lambda: match(300, 92, "softmax", FP32, box_term="ciou"), {"match_kernel": 255}),
    Case("200 queries, CIoU, fp64", lambda: match(200, 91, "focal", FP64, box_term="ciou"), {"match_kernel": 255}),
    Case("300 queries, varifocal, bf16", lambda: match(300, 80, "varifocal", BF16), {"match_kernel": 255}),
    Case("200 queries, quality, fp64", lambda: match(200, 80, "quality_focal", FP64), {"match_kernel": 255}),
    Case("100 queries, labels, fp32", lambda: match(100, 80, "focal", FP32, labels=(4,)), {"match_kernel": 255}),
    Case(
        "cross entropy, 3, fp32",
        lambda: set_loss("cross_entropy", predictions(12, 3, FP32, FP32)),
        of_losses(56, 80, 56),
    ),
    Case(
        "cross entropy, 92, bf16",
        lambda: set_loss("cross_entropy", predictions(100, 92, BF16, FP32, (6,)), per_layer=True),
        of_losses(80, 168, 96),
    ),
    Case(
        "focal, 91, fp32",
        lambda: set_loss("focal", predictions(100, 91, FP32, FP32, (6,))),
        of_losses(96, 168, 128),
    ),
    Case(
        "focal, weights, 91, fp32",
        lambda: set_loss("focal", predictions(100, 91, FP32, FP32), class_weights=tensor(FP32, 91)),
        of_losses(96, 80, 128),
    ),
    Case(
        "varifocal, 80, bf16",
        lambda: set_loss("varifocal", predictions(300, 80, BF16, FP32)),
        of_losses(96, 80, 96),
    ),
    Case(
        "quality focal tubes, fp64",
        lambda: set_loss("quality_focal", tubelets(FP64), gamma=1.5),
        of_losses(80, 255, 128),
    ),
    Case(
        "gamma 1.5, 91, fp32",
        lambda: set_loss("focal", predictions(100, 91, FP32, FP32), gamma=1.5),
        of_losses(80, 80, 128),
    ),
    Case(
        "several labels, 80, bf16",
        lambda: set_loss("focal", predictions(300, 80, BF16, FP32, labels=(4,))),
        of_losses(128, 80, 128),
    ),
    Case("tubelets, fp64", lambda: set_loss("cross_entropy", tubelets(FP64)), of_losses(80, 255, 128)),
    Case(
        "frame logits, 3, fp32",
        lambda: set_loss("cross_entropy", tubelets(FP32, (32,))),
        of_losses(80, 168, 80),
    ),
    Case(
        "frame logits, focal, 80, bf16",
        lambda: set_loss("focal", tubelets(BF16, (32,), 80)),
        of_losses(128, 168, 128),
    ),
    Case(
        "frame labels, focal, 80, bf16",
        lambda: set_loss("focal", tubelets(BF16, (32,), 80, (32, 4))),
        of_losses(128, 168, 128),
    ),
    Case(
        "tubelets, CIoU, fp64",
        lambda: set_loss("cross_entropy", tubelets(FP64), box_term="ciou"),
        of_losses(96, 255, 128),
    ),
    Case("all changes, bf16", lambda: gather_clips(BF16, crops=True, color=True), {"gather_clips_kernel": 128}),
    Case("all changes, fp32", lambda: gather_clips(FP32, crops=True, color=True), {"gather_clips_kernel": 128}),
    Case("crops, fp16", lambda: gather_clips(FP16, crops=True), {"gather_clips_kernel": 96}),
    Case("color, fp16", lambda: gather_clips(FP16, color=True), {"gather_clips_kernel": 56}),
    Case("no change, fp32", lambda: gather_clips(FP32), {"gather_clips_kernel": 40}),
    Case("norm, 144, bf16", lambda: batch_norm(144, BF16, relu=True), of_norm(128, 128, 168, 168, 128)),
    Case(
        "norm, 64, bf16, shortcut",
        lambda: batch_norm(64, BF16, relu=True, with_shortcut=True),
        of_norm(128, 128, 168, 168, 128),
    ),
    Case("norm, 45, fp32", lambda: batch_norm(45, FP32, relu=True), of_norm(255, 255, 255, 255, 128)),
    Case("deformable, 32, bf16", lambda: deformable_attention(300, 32, BF16), of_deformable(96, 80), 70),
    Case(
        "deformable, 32, fp32, mask",
        lambda: deformable_attention(300, 32, FP32, masked=True),
        of_deformable(96, 80),
        70,
    ),
    Case("deformable, 12 queries, fp16", lambda: deformable_attention(12, 32, FP16), of_deformable(96, 80), 70),
    Case(
        "deformable, 64, fp64, mask",
        lambda: deformable_attention(300, 64, FP64, masked=True),
        of_deformable(128, 80),
        70,
    ),
    Case(
        "deformable, 32, bf16, any order",
        lambda: deformable_attention(300, 32, BF16, deterministic=False),
        {"deformable_attention_kernel": 96, "deformable_gradient_kernel": 80},
        70,
    ),
    Case("norm, 64, fp64", lambda: batch_norm(64, FP64, relu=False), of_norm(168, 168, 168, 168, 128)),
    Case("centers, fp32", lambda: center_loss(FP32), of_centers(80, 96, 64, 96)),
    Case(
        "centers, bf16, circles, corrected",
        lambda: center_loss(BF16, radius="corrected", movement_area="circle", size_area="center", moved=False),
        of_centers(80, 96, 64, 96),
    ),
    Case(
        "centers, fp64, 24 channels, beta 1.5",
        lambda: center_loss(FP64, channels=24, classes=0, beta=1.5),
        of_centers(128, 168, 80, 168),
    ),
    Case("peaks, fp32", lambda: center_peaks(FP32), {"center_peaks_kernel": 128}),
    Case("peaks, bf16, in place", lambda: center_peaks(BF16, moved=False), {"center_peaks_kernel": 168}),
    Case("peaks, fp64, no classes", lambda: center_peaks(FP64, classes=False), {"center_peaks_kernel": 168}),
    Case("10 tubelets, fp32", lambda: suppress_overlaps(10, FP32, 16), {"suppress_overlaps_kernel": 64}),
    Case("245 boxes, bf16", lambda: suppress_overlaps(245, BF16), {"suppress_overlaps_kernel": 128}),
    Case("300 tubelets, fp64", lambda: suppress_overlaps(300, FP64, 16), {"suppress_overlaps_kernel": 168}),
    Case("2048 boxes, fp32", lambda: suppress_overlaps(2048, FP32), {"suppress_overlaps_kernel": 255}),
    Case("2048 boxes, fp64", lambda: suppress_overlaps(2048, FP64), {"suppress_overlaps_kernel": 255}),
]
