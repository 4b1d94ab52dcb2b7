"""Computes the losses of matched and unmatched queries in two launches, and their gradients in one.

cls, "cross_entropy":  sum_n w_n (-log softmax(logits_n)[label_n]) / sum_n w_n
cls, "focal":          sum_nc w_c alpha_t (1 - p_t)^gamma (-log p_t) / targets
cls, "varifocal":      sum_nc w_c f_nc BCE(p_nc, q_nc) / targets,  f_nc = q_nc for the label, else alpha p_nc^gamma
cls, "quality_focal":  sum_nc w_c |q_nc - p_nc|^gamma BCE(p_nc, q_nc) / targets
l1                     sum over matched n of |b_n - target|_1 / targets
giou                   sum over matched n of (1 - GIoU(b_n, target)) / targets,  or of DIoU or CIoU

Here w_n is the class weight of label_n. Without class weights it is no_object_weight for no_object and 1 otherwise.
w_c is the class weight of class c, or 1. p_nc = sigmoid(logits_nc). p_t is p_nc for a label and 1 - p_nc for every
other class; in the same way alpha_t is alpha or 1 - alpha. q_nc is the IoU of the matched boxes for a label, otherwise
0. Targets with several labels have no cross entropy. L1, GIoU and IoU of tubelets are means over the visible frames.
With logits of each frame, n counts the frames of all queries, and a query has a target only in frames in which that is
visible, and where it may have labels of its own; the focal loss is then divided by T targets.

Every layer has its own losses. A program takes some queries of one problem, a sample under one layer. `set_loss_kernel`
writes the sums of each program, and `total_kernel` adds them up in a fixed order, so that two runs give the same bits.
`gradient_kernel` computes the softmax again, which moves less memory than keeping gradients from the forward pass.
"""
# Pyright does not know the types of what Triton compiles.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false, reportCallIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from actdet_kernels.options import LossOptions
from actdet_kernels.reference import SOFT_KINDS
from actdet_kernels.targets import Targets, Tubelets, has_frame_labels, query_shape
from actdet_kernels.triton import launch
from actdet_kernels.triton.boxes import diou_gradient, giou_gradient, load_box, tubelet_terms
from actdet_kernels.triton.classes import (
    focal_terms,
    has_wrong_label,
    is_label,
    load_logits,
    sign_of,
    soft_terms,
    softmax_normalizer,
)
from actdet_kernels.triton.launch import (
    block_of_classes,
    compiler_options,
    compute_dtype,
    focal_options,
    inputs,
    is_of_each_frame,
    sizes,
    tile_count,
    triton_dtype,
    weight_options,
)

# The number of queries of one program, and of targets that it searches for theirs at a time.
BLOCK_N = 16
BLOCK_M = 32

# The most logits of a query that are in registers at a time.
LARGEST_BLOCK_C = 32

# The number of layers and of programs whose sums are added up at a time, and of the warps that do it.
BLOCK_L = 8
BLOCK_I = 128
TOTAL_WARPS = 8


@triton.jit
def find_targets(matched, o_n, count, BLOCK_M: tl.constexpr):
    """Return the target of each query (BLOCK_N,), -1 for none. If several targets have a query, the last one counts."""
    target = o_n * 0 - 1
    for first in range(0, count, BLOCK_M):
        o_m = first + tl.arange(0, BLOCK_M)
        query = tl.load(matched + o_m, mask=o_m < count, other=-1)
        found = tl.where(query[None, :] == o_n[:, None], o_m[None, :], -1)
        target = tl.maximum(target, tl.max(found, axis=1))
    return target


@triton.jit
def find_labels(labels, target, classes, labels_each, NO_OBJECT: tl.constexpr, SEVERAL: tl.constexpr):
    """Return the label of each query (BLOCK_N,): the first of its target.

    A query without a target gets no_object, which is the last logit, or -1 if there is no such class.
    """
    label = tl.load(labels + (target * labels_each if SEVERAL else target), mask=target >= 0, other=-1)
    if NO_OBJECT:
        label = tl.where(target >= 0, label, classes - 1)
    return label


@triton.jit
def weight_of_labels(class_weights, label, classes, NO_OBJECT_WEIGHT: tl.constexpr, DTYPE: tl.constexpr):
    """Return the weight of each query (BLOCK_N,) in the cross entropy.

    If class_weights is None, only no_object has a weight other than 1.
    """
    if class_weights is None:
        weight = tl.where(label == classes - 1, tl.full([], NO_OBJECT_WEIGHT, DTYPE), 1.0)
    else:
        known = (label >= 0) & (label < classes)
        weight = tl.load(class_weights + tl.where(known, label, 0)).to(DTYPE)
    return weight


@triton.jit
def matched_terms(
    boxes, target_boxes, visible, first, target, row, frames, BOX_TERM: tl.constexpr, DTYPE: tl.constexpr
):
    """Return the L1 and the box term of each query (BLOCK_N,) with its target; 0 for a query without one.

    `first` is the row of the sample's first target.
    """
    m_pair = target >= 0
    goal = tl.where(m_pair, first + target, 0)
    p_visible = None if visible is None else visible + goal * frames
    p_boxes = boxes + row * frames * 4
    p_targets = target_boxes + goal * frames * 4
    return tubelet_terms(p_boxes, p_targets, p_visible, frames, m_pair, m_pair, BOX_TERM, DTYPE)


@triton.jit
def locate(matched, labels, counts, batch, queries, size, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """Return what a program works on: the problem, the sample, the queries, which of them exist, and their targets."""
    tiles = tl.cdiv(queries, BLOCK_N)
    i_p = (tl.program_id(0) // tiles).to(tl.int64)
    i_b = i_p % batch
    o_n = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < queries
    count = tl.minimum(tl.maximum(tl.load(counts + i_b), 0), size).to(tl.int32)
    target = tl.where(m_n, find_targets(matched + i_p * size, o_n, count, BLOCK_M), -1)
    return i_p, i_b, i_p * queries + o_n, m_n, target


@triton.jit
def target_in_frame(visible, goal, target, frame, frames, FRAME_LABELS: tl.constexpr):
    """Return the target of each query (BLOCK_N,) if it is visible in a frame, and -1 otherwise.

    With labels of each frame it is the row of labels of that target in the frame. `goal` is the row of the target among
    those of all samples.
    """
    shown = tl.load(visible + goal * frames + frame, mask=target >= 0, other=0) != 0
    row = target * frames + frame if FRAME_LABELS else target
    return tl.where(shown, row, -1)


@triton.jit
def labels_of_sample(labels, i_b, size, frames, labels_each, SEVERAL: tl.constexpr, FRAME_LABELS: tl.constexpr):
    """Return the pointer to the first label of sample i_b."""
    first = i_b * size
    if FRAME_LABELS:
        first *= frames
    if SEVERAL:
        first *= labels_each
    return labels + first


@triton.jit
def class_losses(
    p_logits, labels, class_weights, target, quality, m_n, classes, labels_each,
    NO_OBJECT_WEIGHT: tl.constexpr, CROSS_ENTROPY: tl.constexpr, ALPHA: tl.constexpr, GAMMA: tl.constexpr,
    SOFT: tl.constexpr, SEVERAL: tl.constexpr, DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Return the weighted class loss of each query (BLOCK_N,), and its weight in the cross entropy.

    Args:
        p_logits: Pointers to the first logit of each query.
        labels: Pointer to the sample's labels.
        class_weights: Pointer to the weights of the classes, or None.
        target: The target of each query, or its row of labels, -1 for none.
        quality: The IoU with it, for the soft losses.
        m_n: Which queries exist.
        classes: The number of logits of a query.
        labels_each: The number of labels stored for each target.
    """
    label = find_labels(labels, target, classes, labels_each, CROSS_ENTROPY, SEVERAL)
    if CROSS_ENTROPY:
        known = (label >= 0) & (label < classes)
        picked = tl.load(p_logits + tl.where(known, label, 0)).to(DTYPE)
        peak, total = softmax_normalizer(p_logits, m_n, classes, "softmax", DTYPE, BLOCK_N, BLOCK_C)
        loss = tl.log(total) - (tl.where(known, picked, float("nan")) - peak)
        weight = weight_of_labels(class_weights, label, classes, NO_OBJECT_WEIGHT, DTYPE)
        cls = tl.where(m_n, weight * loss, 0.0)
        weight = tl.where(m_n, weight, 0.0)
    else:
        # Add up element by element, and reduce across the threads once at the end.
        summed = tl.zeros([BLOCK_N, BLOCK_C], DTYPE)
        weight = tl.zeros([BLOCK_N], DTYPE)
        for first in range(0, classes, BLOCK_C):
            o_c = first + tl.arange(0, BLOCK_C)[None, :]
            x = load_logits(p_logits, m_n, o_c, classes, 0.0, DTYPE)
            hit = is_label(labels, target, label, o_c, labels_each, SEVERAL)
            if SOFT == "none":
                value = focal_terms(x, hit, ALPHA, GAMMA)[0]
            else:
                value = soft_terms(x, hit, quality[:, None], SOFT, ALPHA, GAMMA)[0]
            if class_weights is not None:
                value *= tl.load(class_weights + o_c, mask=o_c < classes, other=0).to(DTYPE)
            summed += tl.where(m_n[:, None] & (o_c < classes), value, 0.0)
        cls = tl.sum(summed, axis=1)
        cls = tl.where(has_wrong_label(labels, target, label, classes, labels_each, SEVERAL), float("nan"), cls)
    return cls, weight


@triton.jit(do_not_specialize=["batch", "queries", "size", "classes", "frames", "labels_each"])
def set_loss_kernel(
    logits, boxes, labels, target_boxes, counts, visible, matched, class_weights, sums,
    batch, queries, size, classes, frames, labels_each,
    NO_OBJECT_WEIGHT: tl.constexpr, CROSS_ENTROPY: tl.constexpr, ALPHA: tl.constexpr, GAMMA: tl.constexpr,
    BOX_TERM: tl.constexpr, SOFT: tl.constexpr, SEVERAL: tl.constexpr, EACH_FRAME: tl.constexpr,
    FRAME_LABELS: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write sums (4, programs) over BLOCK_N queries: weighted class losses, their weights, L1 and GIoU terms."""
    _, i_b, row, m_n, target = locate(matched, labels, counts, batch, queries, size, BLOCK_N, BLOCK_M)
    labels = labels_of_sample(labels, i_b, size, frames, labels_each, SEVERAL, FRAME_LABELS)

    quality = tl.full([BLOCK_N], 1, DTYPE)
    if SOFT != "none":
        iou_term = matched_terms(boxes, target_boxes, visible, i_b * size, target, row, frames, "iou", DTYPE)[1]
        quality = 1 - iou_term
    if EACH_FRAME:
        cls = tl.zeros([BLOCK_N], DTYPE)
        weight = tl.zeros([BLOCK_N], DTYPE)
        goal = tl.where(target >= 0, i_b * size + target, 0)
        p_frames = logits + tl.where(m_n, row, 0) * frames * classes
        for frame in range(frames):
            in_frame = target_in_frame(visible, goal, target, frame, frames, FRAME_LABELS)
            of_frame = class_losses(
                p_frames + frame * classes, labels, class_weights, in_frame, quality, m_n, classes, labels_each,
                NO_OBJECT_WEIGHT, CROSS_ENTROPY, ALPHA, GAMMA, SOFT, SEVERAL, DTYPE, BLOCK_N, BLOCK_C,
            )  # fmt: skip
            cls += of_frame[0]
            weight += of_frame[1]
    else:
        p_logits = logits + tl.where(m_n, row, 0) * classes
        cls, weight = class_losses(
            p_logits, labels, class_weights, target, quality, m_n, classes, labels_each,
            NO_OBJECT_WEIGHT, CROSS_ENTROPY, ALPHA, GAMMA, SOFT, SEVERAL, DTYPE, BLOCK_N, BLOCK_C,
        )  # fmt: skip

    l1, giou = matched_terms(boxes, target_boxes, visible, i_b * size, target, row, frames, BOX_TERM, DTYPE)

    p_sums = sums + tl.program_id(0)
    programs = tl.num_programs(0).to(tl.int64)
    tl.store(p_sums, tl.sum(cls, axis=0))
    tl.store(p_sums + programs, tl.sum(weight, axis=0))
    tl.store(p_sums + 2 * programs, tl.sum(l1, axis=0))
    tl.store(p_sums + 3 * programs, tl.sum(giou, axis=0))


@triton.jit(do_not_specialize=["batch", "size", "layers", "tiles", "class_frames"])
def total_kernel(
    sums, counts, total, cls, l1, giou, divisors,
    batch, size, layers, tiles, class_frames,
    CLS: tl.constexpr, L1: tl.constexpr, GIOU: tl.constexpr, CROSS_ENTROPY: tl.constexpr, PER_LAYER: tl.constexpr,
    DTYPE: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write the losses, of each layer or of all together, and their divisors (2, layers), in a single program."""
    o_i = tl.arange(0, BLOCK_I)
    targets = tl.zeros([BLOCK_I], tl.int64)
    for first in range(0, batch, BLOCK_I):
        count = tl.load(counts + first + o_i, mask=first + o_i < batch, other=0)
        targets += tl.minimum(tl.maximum(count, 0), size)
    targets = tl.maximum(tl.sum(targets, axis=0), 1).to(DTYPE)

    all_cls = tl.zeros([BLOCK_L], DTYPE)
    all_l1 = tl.zeros([BLOCK_L], DTYPE)
    all_giou = tl.zeros([BLOCK_L], DTYPE)
    for first in range(0, layers, BLOCK_L):
        o_l = first + tl.arange(0, BLOCK_L)
        m_l = o_l < layers
        s_cls, weight, s_l1, s_giou = sums_of_layers(sums, o_l, m_l, layers, batch * tiles, DTYPE, BLOCK_L, BLOCK_I)
        divisor = tl.where(weight > 0, weight, 1.0) if CROSS_ENTROPY else weight * 0 + targets * class_frames
        b_cls = tl.where(m_l, s_cls / divisor, 0.0)
        b_l1 = s_l1 / targets
        b_giou = s_giou / targets
        tl.store(divisors + o_l, divisor, mask=m_l)
        tl.store(divisors + layers + o_l, weight * 0 + targets, mask=m_l)
        if PER_LAYER:
            tl.store(total + o_l, weigh(b_cls, b_l1, b_giou, CLS, L1, GIOU, DTYPE), mask=m_l)
            tl.store(cls + o_l, b_cls, mask=m_l)
            tl.store(l1 + o_l, b_l1, mask=m_l)
            tl.store(giou + o_l, b_giou, mask=m_l)
        all_cls += b_cls
        all_l1 += b_l1
        all_giou += b_giou

    if not PER_LAYER:
        e_cls = tl.sum(all_cls, axis=0)
        e_l1 = tl.sum(all_l1, axis=0)
        e_giou = tl.sum(all_giou, axis=0)
        tl.store(total, weigh(e_cls, e_l1, e_giou, CLS, L1, GIOU, DTYPE))
        tl.store(cls, e_cls)
        tl.store(l1, e_l1)
        tl.store(giou, e_giou)


@triton.jit
def sums_of_layers(sums, o_l, m_l, layers, each, DTYPE: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_I: tl.constexpr):
    """Add up the four sums of the `each` programs of a layer, (BLOCK_L,) each. Their loads overlap in time."""
    p_sums = sums + o_l[:, None] * each
    term = layers * each
    cls = tl.zeros([BLOCK_L, BLOCK_I], DTYPE)
    weight = tl.zeros([BLOCK_L, BLOCK_I], DTYPE)
    l1 = tl.zeros([BLOCK_L, BLOCK_I], DTYPE)
    giou = tl.zeros([BLOCK_L, BLOCK_I], DTYPE)
    for first in range(0, each, BLOCK_I):
        o_i = first + tl.arange(0, BLOCK_I)[None, :]
        m = m_l[:, None] & (o_i < each)
        cls += tl.load(p_sums + o_i, mask=m, other=0)
        weight += tl.load(p_sums + term + o_i, mask=m, other=0)
        l1 += tl.load(p_sums + 2 * term + o_i, mask=m, other=0)
        giou += tl.load(p_sums + 3 * term + o_i, mask=m, other=0)
    return tl.sum(cls, axis=1), tl.sum(weight, axis=1), tl.sum(l1, axis=1), tl.sum(giou, axis=1)


@triton.jit
def weigh(cls, l1, giou, CLS: tl.constexpr, L1: tl.constexpr, GIOU: tl.constexpr, DTYPE: tl.constexpr):
    return tl.full([], CLS, DTYPE) * cls + tl.full([], L1, DTYPE) * l1 + tl.full([], GIOU, DTYPE) * giou


@triton.jit
def store_class_gradients(
    logits, d_logits, row, labels, class_weights, target, quality, m_n, by_cls,
    classes, labels_each,
    NO_OBJECT_WEIGHT: tl.constexpr, CROSS_ENTROPY: tl.constexpr, ALPHA: tl.constexpr, GAMMA: tl.constexpr,
    SOFT: tl.constexpr, SEVERAL: tl.constexpr, DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the logits of each query (BLOCK_N,), which lie in the given rows.

    Args:
        logits: Pointer to all logits.
        d_logits: Pointer to their gradients.
        row: The row of each query; any row for a query that does not exist.
        labels: Pointer to the sample's labels.
        class_weights: Pointer to the weights of the classes, or None.
        target: The target of each query, or its row of labels, -1 for none.
        quality: The IoU with it, for the soft losses.
        m_n: Which queries exist.
        by_cls: What multiplies the derivative of the class loss.
        classes: The number of logits of a query.
        labels_each: The number of labels stored for each target.
    """
    label = find_labels(labels, target, classes, labels_each, CROSS_ENTROPY, SEVERAL)
    p_logits = logits + row * classes

    # A label for which there is no logit makes the gradient NaN, as it does the loss, so that the error shows.
    wrong = has_wrong_label(labels, target, label, classes, labels_each, SEVERAL)
    by_query = tl.where(wrong, float("nan"), by_cls)
    if CROSS_ENTROPY:
        peak, total = softmax_normalizer(p_logits, m_n, classes, "softmax", DTYPE, BLOCK_N, BLOCK_C)
        by_query *= weight_of_labels(class_weights, label, classes, NO_OBJECT_WEIGHT, DTYPE)

    for first in range(0, classes, BLOCK_C):
        o_c = first + tl.arange(0, BLOCK_C)[None, :]
        x = load_logits(p_logits, m_n, o_c, classes, 0.0, DTYPE)
        hit = is_label(labels, target, label, o_c, labels_each, SEVERAL)
        if CROSS_ENTROPY:
            gradient = by_query[:, None] * (tl.exp(x - peak[:, None]) / total[:, None] - tl.where(hit, 1.0, 0.0))
        else:
            if SOFT == "none":
                gradient = by_query[:, None] * focal_terms(x, hit, ALPHA, GAMMA)[1]
            else:
                gradient = by_query[:, None] * soft_terms(x, hit, quality[:, None], SOFT, ALPHA, GAMMA)[1]
            if class_weights is not None:
                gradient *= tl.load(class_weights + o_c, mask=o_c < classes, other=0).to(DTYPE)
        tl.store(d_logits + row[:, None] * classes + o_c, gradient, mask=m_n[:, None] & (o_c < classes))


@triton.jit(do_not_specialize=["batch", "queries", "size", "classes", "frames", "labels_each", "layers"])
def gradient_kernel(
    logits, boxes, labels, target_boxes, counts, visible, matched, class_weights, divisors,
    d_total, d_cls, d_l1, d_giou, d_logits, d_boxes,
    batch, queries, size, classes, frames, labels_each, layers,
    CLS: tl.constexpr, L1: tl.constexpr, GIOU: tl.constexpr, PER_LAYER: tl.constexpr,
    NO_OBJECT_WEIGHT: tl.constexpr, CROSS_ENTROPY: tl.constexpr, ALPHA: tl.constexpr, GAMMA: tl.constexpr,
    BOX_TERM: tl.constexpr, SOFT: tl.constexpr, SEVERAL: tl.constexpr, EACH_FRAME: tl.constexpr,
    FRAME_LABELS: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write d_logits and d_boxes of BLOCK_N queries, given the gradients of the four losses, or None if not used."""
    i_p, i_b, row, m_n, target = locate(matched, labels, counts, batch, queries, size, BLOCK_N, BLOCK_M)
    m_pair = target >= 0
    labels = labels_of_sample(labels, i_b, size, frames, labels_each, SEVERAL, FRAME_LABELS)
    i_l = i_p // batch
    by_cls = cotangent(d_total, d_cls, i_l, CLS, PER_LAYER, DTYPE) / tl.load(divisors + i_l)
    by_l1 = cotangent(d_total, d_l1, i_l, L1, PER_LAYER, DTYPE) / tl.load(divisors + layers + i_l)
    by_giou = cotangent(d_total, d_giou, i_l, GIOU, PER_LAYER, DTYPE) / tl.load(divisors + layers + i_l)

    quality = tl.full([BLOCK_N], 1, DTYPE)
    if SOFT != "none":
        iou_term = matched_terms(boxes, target_boxes, visible, i_b * size, target, row, frames, "iou", DTYPE)[1]
        quality = 1 - iou_term
    goal = tl.where(m_pair, i_b * size + target, 0)
    if EACH_FRAME:
        first_row = tl.where(m_n, row, 0) * frames
        for frame in range(frames):
            in_frame = target_in_frame(visible, goal, target, frame, frames, FRAME_LABELS)
            store_class_gradients(
                logits, d_logits, first_row + frame, labels, class_weights, in_frame, quality, m_n, by_cls,
                classes, labels_each,
                NO_OBJECT_WEIGHT, CROSS_ENTROPY, ALPHA, GAMMA, SOFT, SEVERAL, DTYPE, BLOCK_N, BLOCK_C,
            )  # fmt: skip
    else:
        store_class_gradients(
            logits, d_logits, tl.where(m_n, row, 0), labels, class_weights, target, quality, m_n, by_cls,
            classes, labels_each,
            NO_OBJECT_WEIGHT, CROSS_ENTROPY, ALPHA, GAMMA, SOFT, SEVERAL, DTYPE, BLOCK_N, BLOCK_C,
        )  # fmt: skip

    seen = tl.full([BLOCK_N], 1, DTYPE)
    if visible is not None:
        seen = tl.zeros([BLOCK_N], DTYPE)
        for frame in range(frames):
            seen += tl.load(visible + goal * frames + frame, mask=m_pair, other=0).to(DTYPE)
    by_l1 = by_l1 / tl.maximum(seen, 1.0)
    by_giou = by_giou / tl.maximum(seen, 1.0)

    for frame in range(frames):
        m = m_pair if visible is None else tl.load(visible + goal * frames + frame, mask=m_pair, other=0) != 0
        p_box = (row * frames + frame) * 4
        box = load_box(boxes + p_box, m, DTYPE)
        wanted = load_box(target_boxes + (goal * frames + frame) * 4, m, DTYPE)
        of_giou = giou_gradient(box, wanted) if BOX_TERM == "giou" else diou_gradient(box, wanted, BOX_TERM)
        for axis in tl.static_range(4):
            gradient = by_l1 * sign_of(box[axis] - wanted[axis]) - by_giou * of_giou[axis]
            tl.store(d_boxes + p_box + axis, tl.where(m, gradient, 0.0), mask=m_n)


@triton.jit
def cotangent(d_total, d_term, i_l, WEIGHT: tl.constexpr, PER_LAYER: tl.constexpr, DTYPE: tl.constexpr):
    """Return the gradient that reaches one term of layer i_l, directly and through the total."""
    i_l = i_l if PER_LAYER else i_l * 0
    value = tl.full([], 0, DTYPE)
    if d_total is not None:
        value += tl.full([], WEIGHT, DTYPE) * tl.load(d_total + i_l)
    if d_term is not None:
        value += tl.load(d_term + i_l)
    return value


def set_loss(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets | Tubelets,
    matched: Tensor,
    class_weights: Tensor | None,
    options: LossOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return total, cls, l1, giou, 0-d or, with `per_layer`, (...); and the divisors, which the gradient needs."""
    *leading, batch, queries = query_shape(boxes, isinstance(targets, Tubelets))
    tiles = tile_count(queries, BLOCK_N)
    layers = torch.Size(leading).numel()
    compute = compute_dtype(logits, boxes)
    shape = tuple(leading) if options.per_layer else ()
    sums = launch.empty((4, layers * batch * tiles), compute, logits.device)
    total, cls, l1, giou = (launch.empty(shape, compute, logits.device) for _ in range(4))
    divisors = launch.empty((2, layers), compute, logits.device)

    launch.launch(
        set_loss_kernel,
        sums.shape[1],
        matched=matched.contiguous(),
        class_weights=None if class_weights is None else class_weights.contiguous(),
        sums=sums,
        **inputs(logits, boxes, targets),
        **sizes(logits, boxes, targets),
        **loss_options(logits, boxes, targets, options),
    )
    launch.launch(
        total_kernel,
        1,
        sums=sums,
        counts=targets.counts.contiguous(),
        total=total,
        cls=cls,
        l1=l1,
        giou=giou,
        divisors=divisors,
        batch=batch,
        size=targets.labels.shape[1],
        layers=layers,
        tiles=tiles,
        class_frames=boxes.shape[-2] if is_of_each_frame(logits, boxes, targets) else 1,
        PER_LAYER=options.per_layer,
        CROSS_ENTROPY=options.class_loss == "cross_entropy",
        DTYPE=triton_dtype(compute),
        # A block of eight layers takes four times as long to add up as a block of one, if there is only one.
        BLOCK_L=1 if layers == 1 else BLOCK_L,
        BLOCK_I=BLOCK_I,
        **compiler_options(TOTAL_WARPS),
        **weight_options(options.weights),
    )
    return total, cls, l1, giou, divisors


def set_loss_gradient(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets | Tubelets,
    matched: Tensor,
    class_weights: Tensor | None,
    divisors: Tensor,
    cotangents: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    options: LossOptions,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of logits and boxes, given those of total, cls, l1 and giou."""
    *leading, batch, queries = query_shape(boxes, isinstance(targets, Tubelets))
    layers = torch.Size(leading).numel()
    d_logits = launch.empty(tuple(logits.shape), logits.dtype, logits.device)
    d_boxes = launch.empty(tuple(boxes.shape), boxes.dtype, boxes.device)
    d_total, d_cls, d_l1, d_giou = (None if value is None else value.contiguous() for value in cotangents)

    launch.launch(
        gradient_kernel,
        layers * batch * tile_count(queries, BLOCK_N),
        matched=matched.contiguous(),
        class_weights=None if class_weights is None else class_weights.contiguous(),
        divisors=divisors,
        d_total=d_total,
        d_cls=d_cls,
        d_l1=d_l1,
        d_giou=d_giou,
        d_logits=d_logits,
        d_boxes=d_boxes,
        layers=layers,
        PER_LAYER=options.per_layer,
        **inputs(logits, boxes, targets),
        **sizes(logits, boxes, targets),
        **weight_options(options.weights),
        **loss_options(logits, boxes, targets, options),
    )
    return d_logits, d_boxes


def loss_options(logits: Tensor, boxes: Tensor, targets: Targets | Tubelets, options: LossOptions) -> dict[str, Any]:
    """Return the compile-time constants that the loss and its gradient share."""
    class_loss = options.class_loss
    return {
        "NO_OBJECT_WEIGHT": float(options.no_object_weight),
        "CROSS_ENTROPY": class_loss == "cross_entropy",
        "BOX_TERM": options.box_term,
        "SOFT": class_loss if class_loss in SOFT_KINDS else "none",
        "SEVERAL": launch.may_have_several_labels(targets),
        "FRAME_LABELS": has_frame_labels(targets),
        "EACH_FRAME": is_of_each_frame(logits, boxes, targets),
        "DTYPE": triton_dtype(compute_dtype(logits, boxes)),
        "BLOCK_N": BLOCK_N,
        "BLOCK_M": BLOCK_M,
        "BLOCK_C": block_of_classes(logits.shape[-1], LARGEST_BLOCK_C),
        **focal_options(class_loss != "cross_entropy", options.alpha, options.gamma),
        **compiler_options(),
    }
