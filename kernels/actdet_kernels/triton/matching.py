"""Matches queries and targets: computes the costs and solves the assignment in one launch.

matched = argmin over one-to-one matchings of  sum_j cost[matched_j, j],  cost as in `cost.py`

A cost is computed from logits and boxes when the assignment first needs it, and kept for later looks. Many queries do
not fit into one program, and a pair of tubelets takes T times as long to compare. For these there are two launches,
with the cost matrix between them.
"""
# Pyright does not know the types of what Triton compiles.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from actdet_kernels.options import CostOptions
from actdet_kernels.targets import Targets, Tubelets, labels_each, query_shape
from actdet_kernels.triton import launch
from actdet_kernels.triton.assignment import block_size, solve, solve_assignment, solver_options
from actdet_kernels.triton.boxes import box_diou, box_terms, load_box
from actdet_kernels.triton.classes import class_cost, softmax_normalizer
from actdet_kernels.triton.cost import pairwise_cost
from actdet_kernels.triton.launch import block_of_classes, compute_dtype, cost_options

# The largest block that is matched in one launch. For larger ones a cost matrix is written and read.
FUSED_BLOCK = {torch.float32: 1024, torch.float64: 256}


@triton.jit
def target_costs(source, i, j, COST: tl.constexpr, DTYPE: tl.constexpr):
    """Return the costs of target i for every query j. What was computed from the queries stays in registers."""
    query, normalizer, weights, logits, labels, target_boxes, classes, labels_each = source
    p_labels = labels + (i * labels_each if COST[4] else i)
    label = tl.load(p_labels)
    target = load_box(target_boxes + i * 4, None, DTYPE)
    quality = pair_quality(query, target, COST[0])
    cls = class_cost(logits, label, p_labels, i >= 0, classes, labels_each, normalizer, quality, COST, DTYPE)
    l1, giou = box_terms(query, target, COST[3])
    return weights[0] * cls + weights[1] * l1 + weights[2] * giou


@triton.jit
def query_costs(source, i, j, COST: tl.constexpr, DTYPE: tl.constexpr):
    """Return the costs of query i for every target j. What was loaded of the targets stays in registers."""
    target, label, p_labels, m_m, weights, logits, boxes, classes, labels_each = source
    row = logits + i * classes
    ROWS: tl.constexpr = i.numel
    BLOCK_C: tl.constexpr = 16 if ROWS == 1 else 4
    p_rows = tl.reshape(row + tl.zeros([1], tl.int32), [ROWS])
    normalizer = softmax_normalizer(p_rows, tl.full([ROWS], 1, tl.int1), classes, COST[0], DTYPE, ROWS, BLOCK_C)

    # The start of the assignment asks for several rows at a time, as a column.
    if len(i.shape) == 2:
        normalizer = (normalizer[0][:, None], normalizer[1][:, None])
    query = load_box(boxes + i * 4, None, DTYPE)
    quality = pair_quality(query, target, COST[0])
    cls = class_cost(row, label, p_labels, m_m, classes, labels_each, normalizer, quality, COST, DTYPE)
    l1, giou = box_terms(query, target, COST[3])
    return weights[0] * cls + weights[1] * l1 + weights[2] * giou


@triton.jit
def pair_quality(query, target, CLASS_COST: tl.constexpr):
    """Return the IoU of the boxes if the class cost needs it, otherwise 0."""
    soft: tl.constexpr = CLASS_COST == "varifocal" or CLASS_COST == "quality_focal"
    return box_diou(query, target, "iou") if soft else 0.0


@triton.jit(do_not_specialize=["batch", "queries", "size", "classes", "labels_each"])
def match_kernel(
    logits, boxes, labels, target_boxes, counts, kept, matched, status,
    batch, queries, size, classes, labels_each,
    CLS: tl.constexpr, L1: tl.constexpr, GIOU: tl.constexpr,
    CLASS_COST: tl.constexpr, ALPHA: tl.constexpr, GAMMA: tl.constexpr, BOX_TERM: tl.constexpr,
    SEVERAL: tl.constexpr,
    DTYPE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, BLOCK_C: tl.constexpr, REDUX: tl.constexpr,
):  # fmt: skip
    """Match one problem in each program: a sample under one decoder layer. The layers share the samples' targets."""
    i_p = tl.program_id(0).to(tl.int64)
    i_b = i_p % batch
    o = tl.arange(0, BLOCK)
    count = tl.minimum(tl.maximum(tl.load(counts + i_b), 0), size).to(tl.int32)
    classes = classes.to(tl.int64)

    weights = (tl.full([], CLS, DTYPE), tl.full([], L1, DTYPE), tl.full([], GIOU, DTYPE))
    logits += i_p * queries * classes
    boxes += i_p * queries * 4
    labels += i_b * size * labels_each if SEVERAL else i_b * size
    target_boxes += i_b * size * 4
    matched += i_p * size
    kept += i_p * tl.minimum(queries, size) * BLOCK

    # The memo of the assignment lies where its result will be written at the end.
    memo = matched.to(tl.pointer_type(DTYPE), bitcast=True)

    if count <= queries:
        m_n = o < queries
        p_logits = logits + tl.where(m_n, o, 0) * classes
        query = load_box(boxes + o * 4, m_n, DTYPE)
        normalizer = softmax_normalizer(p_logits, m_n, classes, CLASS_COST, DTYPE, BLOCK, BLOCK_C)
        for_targets = (query, normalizer, weights, p_logits, labels, target_boxes, classes, labels_each)
        of_queries = solve(
            target_costs, (CLASS_COST, ALPHA, GAMMA, BOX_TERM, SEVERAL),
            for_targets, kept, memo, count, queries, DTYPE, BLOCK, TILE, SQUARE=False, REDUX=REDUX,
        )  # fmt: skip
        tl.store(matched + o, tl.full([BLOCK], -1, tl.int32), mask=(o >= count) & (o < size))
        tl.store(matched + of_queries[0], o, mask=of_queries[0] >= 0)
        tl.store(status + i_p, of_queries[3])
    else:
        m_m = o < count
        target = load_box(target_boxes + o * 4, m_m, DTYPE)
        p_labels = labels + (o * labels_each if SEVERAL else o)
        label = tl.load(p_labels, mask=m_m, other=-1)
        for_queries = (target, label, p_labels, m_m, weights, logits, boxes, classes, labels_each)
        of_targets = solve(
            query_costs, (CLASS_COST, ALPHA, GAMMA, BOX_TERM, SEVERAL),
            for_queries, kept, memo, queries, count, DTYPE, BLOCK, TILE, SQUARE=False, REDUX=REDUX,
        )  # fmt: skip
        tl.store(matched + o, of_targets[0], mask=o < size)
        tl.store(status + i_p, of_targets[3])


def match(logits: Tensor, boxes: Tensor, targets: Targets | Tubelets, options: CostOptions) -> tuple[Tensor, Tensor]:
    """Return each target's query, (..., B, M) int64 with -1 for none, and each problem's status, (..., B) int32."""
    *problems, queries = query_shape(boxes, isinstance(targets, Tubelets))
    batch = problems[-1]
    classes = logits.shape[-1]
    size = targets.labels.shape[1]
    block = block_size(queries, size)
    compute = compute_dtype(logits, boxes)
    if isinstance(targets, Tubelets) or block > FUSED_BLOCK[compute] or queries == 0:
        cost = pairwise_cost(logits, boxes, targets, options, compute).flatten(0, -3).mT
        matched, _, _, _, status = solve_assignment(cost, targets.counts, maximize=False, duals=False)
        return matched.view(*problems, size), status.view(problems)

    matched = launch.empty((*problems, size), torch.int64, logits.device)
    status = launch.empty(tuple(problems), torch.int32, logits.device)
    # The kernel reads target 0 even if a count is 0, so without any target it must not run.
    if size == 0:
        return matched, status.zero_()

    # A pair takes a hundred instructions, so more warps pay off. With more pairs or logits, a thread would spill.
    large = block > 512
    costs = 2 if large or compute == torch.float64 else 4
    logits_each = 8 if large else 16
    solver = solver_options(block, logits.device, costs, most_warps=16 if large else 8)

    # The augmentations read the costs from here again and again, rather than computing them anew.
    kept = launch.empty((*problems, min(queries, size), block), compute, logits.device)

    launch.launch(
        match_kernel,
        status.numel(),
        logits=logits.contiguous(),
        boxes=boxes.contiguous(),
        labels=targets.labels.contiguous(),
        target_boxes=targets.boxes.contiguous(),
        counts=targets.counts.contiguous(),
        kept=kept,
        matched=matched,
        status=status,
        batch=batch,
        queries=queries,
        size=size,
        classes=classes,
        labels_each=labels_each(targets),
        BLOCK_C=block_of_classes(classes, logits_each * 32 * solver["num_warps"] // block),
        **cost_options(compute, targets, options),
        **solver,
    )
    return matched, status
