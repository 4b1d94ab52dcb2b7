"""Suppression by kernels and reference, against loops over pairs in float64 and torchvision."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from actdet_kernels import suppress_overlaps
from actdet_kernels.backend import Backend
from torch import Tensor
from torchvision.ops import batched_nms

from tests.kernels.device import DEVICE, HAS_CPP, KERNELS, KINDS, POISONED
from tests.kernels.suppression_oracles import kept_by_loops, random_overlaps

pytestmark = POISONED
EACH_KIND = pytest.mark.parametrize("kind", KINDS)
EACH_KERNEL = pytest.mark.parametrize("kind", KERNELS)
FP16, BF16, FP32, FP64 = torch.float16, torch.bfloat16, torch.float32, torch.float64

# B, N, T and C, and how many different scores there are. A block of Triton's has at least 32 boxes, and a warp looks at
# 128.
SHAPES = [
    ((3, 10, 5, 4), 0),
    ((3, 10, 5, 4), 3),
    ((1, 1, 1, 1), 0),
    ((2, 7, 1, 3), 1),
    ((2, 2, 9, 1), 2),
    ((1, 32, 2, 2), 0),
    ((2, 33, 1, 2), 5),
    ((1, 245, 1, 3), 0),
    ((1, 1, 1, 30), 0),
    ((2, 0, 5, 2), 0),
    ((0, 3, 5, 2), 0),
    ((2, 3, 5, 0), 0),
]


def kept(boxes: Tensor, scores: Tensor, kind: Backend, **options: Any) -> Tensor:
    return suppress_overlaps(boxes.to(DEVICE), scores.to(DEVICE), backend=kind, **options).cpu()


@EACH_KIND
@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("shape", "values"), SHAPES, ids=str)
def test_equals_the_loops(shape: tuple[int, int, int, int], values: int, threshold: float, kind: Backend) -> None:
    boxes, scores = random_overlaps(shape, seed=1, values=values)
    got = kept(boxes, scores, kind, iou_threshold=threshold, score_threshold=0.1037)
    assert got.shape == scores.shape
    assert torch.equal(got, kept_by_loops(boxes, scores, threshold, 0.1037))


def test_random_overlaps_suppress_each_other_and_do_not() -> None:
    """So that the comparison above says something."""
    for shape, values in (SHAPES[0], SHAPES[1], SHAPES[6], SHAPES[7]):
        boxes, scores = random_overlaps(shape, seed=1, values=values)
        share = kept_by_loops(boxes, scores, 0.3, 0.1037).sum() / (scores > 0.1037).sum()
        assert 0.05 < share < 0.8


@EACH_KIND
@pytest.mark.parametrize("rows", [5, 60, 300])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.77])
def test_of_boxes_it_is_what_torchvision_keeps(rows: int, threshold: float, kind: Backend) -> None:
    classes = 3
    boxes, scores = random_overlaps((2, rows, 1, classes), seed=2, dtype=FP64)
    boxes = boxes[:, :, 0]
    got = kept(boxes, scores, kind, iou_threshold=threshold, score_threshold=-1)
    for sample in range(2):
        each = boxes[sample, :, None].expand(-1, classes, -1).reshape(-1, 4)
        labels = torch.arange(classes).repeat(rows)
        numbers = batched_nms(each, scores[sample].flatten(), labels, threshold)
        wanted = torch.zeros(rows * classes, dtype=torch.bool)
        wanted[numbers] = True
        assert torch.equal(got[sample].flatten(), wanted)


@EACH_KIND
@pytest.mark.parametrize(
    ("boxes_dtype", "scores_dtype"), [(FP64, FP64), (FP32, FP64), (FP16, FP16), (BF16, FP32), (FP32, BF16)]
)
def test_every_dtype_is_computed_in_float32_at_least(
    boxes_dtype: torch.dtype, scores_dtype: torch.dtype, kind: Backend
) -> None:
    boxes, scores = random_overlaps((2, 20, 3, 3), seed=3)
    boxes, scores = boxes.to(boxes_dtype), scores.to(scores_dtype)
    got = kept(boxes, scores, kind, iou_threshold=0.4)
    assert torch.equal(got, kept_by_loops(boxes, scores, 0.4, 0.0))


@EACH_KIND
def test_a_threshold_of_float64_is_not_rounded(kind: Backend) -> None:
    """An overlap of exactly a third, and thresholds a bit above and below, which are the same in float32."""
    boxes = torch.tensor([[[0.0, 0, 2, 1], [1, 0, 3, 1]]], dtype=FP64)
    scores = torch.tensor([[[0.9], [0.8]]], dtype=FP64)
    third = 1 / 3
    for threshold, stays in ((third * (1 - 1e-12), False), (third * (1 + 1e-12), True)):
        assert kept(boxes, scores, kind, iou_threshold=threshold)[0, 1, 0] == stays


@EACH_KIND
def test_who_is_suppressed_suppresses_nobody(kind: Backend) -> None:
    """A chain of boxes, each of which overlaps its neighbors by a third."""
    left = torch.tensor([0.0, 1.0, 2.0, 3.0])
    boxes = torch.stack([left, left * 0, left + 2, left * 0 + 1], -1)[None]
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])[None, :, None]
    assert kept(boxes, scores, kind, iou_threshold=0.3).flatten().tolist() == [True, False, True, False]
    assert kept(boxes, scores, kind, iou_threshold=0.34).all()


@EACH_KIND
def test_the_overlap_of_tubelets_is_the_mean_over_their_frames(kind: Backend) -> None:
    """Of no area in one frame, and the same in the other, which is an overlap of a half."""
    boxes = torch.full((1, 2, 2, 4), 0.5)
    scores = torch.tensor([0.9, 0.8])[None, :, None]
    assert kept(boxes, scores, kind, iou_threshold=0.0).all()
    boxes[:, :, 1, 2:] = 0.75
    assert kept(boxes, scores, kind, iou_threshold=0.5).all()
    assert kept(boxes, scores, kind, iou_threshold=0.49).flatten().tolist() == [True, False]


@EACH_KIND
@pytest.mark.parametrize("dtype", [FP32, FP64])
def test_scores_of_any_size_keep_their_order(dtype: torch.dtype, kind: Backend) -> None:
    """All boxes are the same, so only the surest of each class is kept. Zeros of either sign are equal."""
    columns = [
        [0.5, math.nan, math.inf, 3e38, 1.0],
        [-math.inf, -3e38, -1.0, -2.0, math.nan],
        [-0.0, 0.0, -1e-30, -1.0, -0.0],
        [0.0, -0.0, -1e-30, -1.0, 0.0],
        [1e-30, 2e-30, 0.0, -0.0, 1e-31],
        [math.nan] * 5,
        [-math.inf] * 5,
    ]
    scores = torch.tensor(columns, dtype=dtype).T[None]
    boxes = torch.tensor([0.1, 0.2, 0.6, 0.7], dtype=dtype).expand(1, 5, 4)
    got = kept(boxes, scores, kind, iou_threshold=0.5, score_threshold=-math.inf)
    assert [column.nonzero().flatten().tolist() for column in got[0].T] == [[2], [2], [0], [0], [1], [], []]


@EACH_KIND
def test_boxes_that_are_not_boxes_overlap_nobody(kind: Backend) -> None:
    sound = [0.1, 0.1, 0.6, 0.6]
    strange = [
        [math.nan, 0.1, 0.6, 0.6],
        [0.1, 0.1, math.inf, 0.6],
        [-math.inf, -math.inf, math.inf, math.inf],
        [0.1, math.nan, math.nan, 0.6],
        [0.6, 0.6, 0.1, 0.1],
        [0.3, 0.1, 0.3, 0.6],
    ]
    boxes = torch.tensor([[sound, sound, *strange, sound]])
    scores = torch.linspace(1, 0.1, len(strange) + 3)[None, :, None]
    got = kept(boxes, scores, kind, iou_threshold=0.01)
    assert got.flatten().tolist() == [True, False, *[True] * len(strange), False]
    assert torch.equal(got, kept_by_loops(boxes, scores, 0.01, 0.0))


@EACH_KERNEL
def test_tensors_may_lie_in_memory_in_any_way(kind: Backend) -> None:
    boxes, scores = random_overlaps((3, 12, 2, 4), seed=4)
    wanted = kept_by_loops(boxes, scores, 0.3, 0.0)
    apart = torch.nn.functional.pad(boxes, (1, 2, 1, 1), value=99)[:, :, 1:-1, 1:-2]
    turned = scores.transpose(1, 2).contiguous().transpose(1, 2)
    assert not apart.is_contiguous()
    assert not turned.is_contiguous()
    assert torch.equal(kept(apart, turned, kind, iou_threshold=0.3), wanted)


@pytest.mark.skipif(not HAS_CPP, reason="the C++ kernels were not built")
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_of_cpu_kernels_change_nothing(threads: int) -> None:
    boxes, scores = random_overlaps((9, 300, 1, 20), seed=5)
    wanted = kept(boxes, scores, "reference", iou_threshold=0.4)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(kept(boxes, scores, "cpu", iou_threshold=0.4), wanted)
    finally:
        torch.set_num_threads(before)


@EACH_KIND
def test_the_best_of_the_kept_ones_need_no_reading_back(kind: Backend) -> None:
    """The example of the docstring."""
    boxes, scores = random_overlaps((2, 30, 1, 3), seed=6)
    got = kept(boxes, scores, kind, iou_threshold=0.3)
    best = scores.where(got, 0).flatten(1).topk(4)
    for sample in range(2):
        wanted = sorted(scores[sample][got[sample]].tolist(), reverse=True)[:4]
        assert best.values[sample].tolist() == wanted


@EACH_KERNEL
def test_compiled_whole_it_gives_what_it_gives_eagerly(kind: Backend) -> None:
    torch.compiler.reset()
    compiled = torch.compile(suppress_overlaps, fullgraph=True, backend="aot_eager")
    for shape in ((2, 9, 1, 3), (2, 9, 4, 3)):
        boxes, scores = (each.to(DEVICE).requires_grad_() for each in random_overlaps(shape, seed=7))
        got = compiled(boxes, scores, iou_threshold=0.3, backend=kind)
        assert torch.equal(got, suppress_overlaps(boxes, scores, iou_threshold=0.3, backend=kind))


def test_nothing_is_read_back_by_the_reference() -> None:
    """On a device without values, reading one is an error."""
    boxes, scores = (each.to("meta") for each in random_overlaps((2, 10, 5, 3), seed=8))
    assert suppress_overlaps(boxes, scores, iou_threshold=0.3, backend="reference").shape == (2, 10, 3)


def wrong(**changes: Any) -> dict[str, Any]:
    return {"boxes": torch.zeros(2, 5, 4), "scores": torch.zeros(2, 5, 3), "iou_threshold": 0.5} | changes


WRONG: list[tuple[dict[str, Any], str]] = [
    (wrong(boxes=torch.zeros(2, 5, 5)), r"boxes must be \(B, N, 4\) or \(B, N, T, 4\), got \(2, 5, 5\)"),
    (wrong(boxes=torch.zeros(5, 4)), r"boxes must be \(B, N, 4\) or \(B, N, T, 4\), got \(5, 4\)"),
    (wrong(boxes=torch.zeros(2, 5, 0, 4)), r"boxes must be of one frame at least, got \(2, 5, 0, 4\)"),
    (wrong(scores=torch.zeros(2, 5)), r"scores must be \(2, 5, C\), got \(2, 5\)"),
    (wrong(scores=torch.zeros(2, 6, 3)), r"scores must be \(2, 5, C\), got \(2, 6, 3\)"),
    (wrong(boxes=torch.zeros(2, 5, 4).int()), "boxes must be floating point, got torch.int32"),
    (wrong(scores=torch.zeros(2, 5, 3).long()), "scores must be floating point, got torch.int64"),
    (wrong(scores=torch.zeros(2, 5, 3, device="meta")), "scores are on meta, boxes on cpu"),
    (wrong(iou_threshold=math.nan), "iou_threshold must be a number, got nan"),
    (wrong(score_threshold=math.nan), "score_threshold must be a number, got nan"),
    (wrong(backend="cuda"), "backend must be 'auto', 'triton', 'cpu' or 'reference', got 'cuda'"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suppress_overlaps(**arguments)


def test_what_triton_cannot_hold_is_left_to_others() -> None:
    boxes, scores = torch.zeros(1, 2049, 4), torch.zeros(1, 2049, 1)
    with pytest.raises(RuntimeError, match="2049 boxes of a sample are more than 2048"):
        suppress_overlaps(boxes, scores, iou_threshold=0.5, backend="triton")
    assert suppress_overlaps(boxes, scores + 1, iou_threshold=0.5).all()
