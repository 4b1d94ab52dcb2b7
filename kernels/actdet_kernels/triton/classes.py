"""Class algebra that kernels share: device functions over logits, labels and the quality of boxes.

A target has one label or several. If it has several, those after its last are -1; the first never is. Logits and labels
are read through pointers that broadcast, so an array of shape (N, M, C) never exists.
"""
# Pyright does not know the types of what Triton compiles.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl

MINUS_INFINITY = tl.constexpr(float("-inf"))


@triton.jit
def class_cost(
    logits, label, more_labels, m, classes, labels_each, normalizer, quality, COST: tl.constexpr, DTYPE: tl.constexpr
):
    """Return the class terms of pairs, added up over the labels of each target.

    Args:
        logits: Pointers to the first logit of each query.
        label: The first label of each target.
        more_labels: Pointers to the first label of each target.
        m: Which of these pointers may be read.
        classes: The number of logits of a query.
        labels_each: The number of labels stored for each target.
        normalizer: The result of `softmax_normalizer` for each query.
        quality: The IoU of each pair of boxes, for the soft costs.
        COST: CLASS_COST, ALPHA, GAMMA, BOX_TERM and SEVERAL, in a tuple because the assignment passes them on as one.
        DTYPE: The type of the arithmetic.
    """
    cost = label_cost(load_logit(logits, label, classes, DTYPE), normalizer, quality, COST)
    if COST[4]:
        for k in range(1, labels_each):
            label = tl.load(more_labels + k, mask=m, other=-1)
            term = label_cost(load_logit(logits, label, classes, DTYPE), normalizer, quality, COST)
            cost += tl.where(label == -1, 0.0, term)
    return cost


@triton.jit
def label_cost(x, normalizer, quality, COST: tl.constexpr):
    """Return the class term of one label, given the query's logit `x` of it and, for soft costs, the boxes' IoU."""
    if COST[0] == "softmax":
        cost = softmax_cost(x, normalizer)
    elif COST[0] == "focal":
        cost = focal_cost(x, COST[1], COST[2])
    else:
        cost = soft_cost(x, quality, COST[0], COST[1], COST[2])
    return cost


@triton.jit
def softmax_cost(x, normalizer):
    peak, total = normalizer
    return -tl.exp(x - peak) / total


@triton.jit
def focal_cost(x, ALPHA: tl.constexpr, GAMMA: tl.constexpr):
    """Return the focal loss if the query has this class, minus that if it has none, as in Deformable DETR.

    The focal loss is that of Lin et al. 2017. sigmoid(x) and sigmoid(-x) come from one exponential that cannot
    overflow. Neither is computed as 1 minus the other, which would lose precision.
    """
    tail = tl.exp(-tl.abs(x))
    larger = 1 / (1 + tail)
    smaller = tail / (1 + tail)
    p = tl.where(x > 0, larger, smaller)
    rest = tl.where(x > 0, smaller, larger)

    # -log(p) and -log(1 - p).
    common = tl.log(1 + tail)
    found = common + tl.where(x < 0, -x, 0.0)
    missed = common + tl.where(x > 0, x, 0.0)

    # The constants get the logits' type, because Triton would round a Python float to float32.
    alpha = tl.full([], ALPHA, x.dtype)
    others = tl.full([], 1 - ALPHA, x.dtype)
    return times_power(alpha, rest, missed, GAMMA) * found - times_power(others, p, found, GAMMA) * missed


@triton.jit
def soft_cost(x, quality, SOFT: tl.constexpr, ALPHA: tl.constexpr, GAMMA: tl.constexpr):
    """Return the soft loss if the query has this class with the given IoU, minus that if it has none."""
    label = tl.full([], 1, tl.int1)
    found = soft_terms(x, label, quality, SOFT, ALPHA, GAMMA)[0]
    missed = soft_terms(x, label == 0, quality, SOFT, ALPHA, GAMMA)[0]
    return found - missed


@triton.jit
def focal_terms(x, hit, ALPHA: tl.constexpr, GAMMA: tl.constexpr):
    """Return alpha_t (1 - p_t)^gamma (-log p_t) of logits x (Lin et al. 2017), and its derivative.

    `hit` tells which logits are those of a label.
    """
    sign = tl.where(hit, 1.0, -1.0).to(x.dtype)
    x = x * sign
    tail = tl.exp(-tl.abs(x))
    p = tl.where(x > 0, 1.0, tail) / (1 + tail)
    rest = tl.where(x > 0, tail, 1.0) / (1 + tail)

    # -log(p) and -log(1 - p).
    common = tl.log(1 + tail)
    surprise = common + tl.where(x < 0, -x, 0.0)
    of_rest = common + tl.where(x > 0, x, 0.0)

    alpha = tl.where(hit, tl.full([], ALPHA, x.dtype), tl.full([], 1 - ALPHA, x.dtype))
    gamma = tl.full([], GAMMA, x.dtype)
    value = times_power(alpha, rest, of_rest, GAMMA) * surprise
    return value, times_power(-sign * alpha, rest, of_rest, GAMMA) * (gamma * p * surprise + rest)


@triton.jit
def soft_terms(x, hit, quality, SOFT: tl.constexpr, ALPHA: tl.constexpr, GAMMA: tl.constexpr):
    """Return a factor times BCE(sigmoid(x), q), and its derivative.

    `hit` tells which logits are those of a label. For these q is the quality, for the others 0. The factor of
    "varifocal" is q for a label and alpha p^gamma otherwise, and counts as a constant in the derivative. The factor of
    "quality_focal" is |q - p|^gamma.
    """
    tail = tl.exp(-tl.abs(x))
    p = tl.where(x > 0, 1.0, tail) / (1 + tail)
    rest = tl.where(x > 0, tail, 1.0) / (1 + tail)

    # `found` is -log(p).
    common = tl.log(1 + tail)
    found = common + tl.where(x < 0, -x, 0.0)
    q = tl.where(hit, quality, 0.0)
    surprise = common + tl.where(x > 0, x, 0.0) - x * q
    if SOFT == "varifocal":
        factor = tl.where(hit, q, times_power(tl.full([], ALPHA, x.dtype), p, found, GAMMA))
        slope = factor * (p - q)
    else:
        off = tl.abs(p - q)
        one_less = times_power(tl.full([], 1.0, x.dtype), off, -tl.log(off), GAMMA - 1)
        factor = one_less * off
        slope = factor * (p - q) + one_less * tl.full([], GAMMA, x.dtype) * sign_of(p - q) * p * rest * surprise
    return factor * surprise, slope


@triton.jit
def times_power(factor, p, surprise, GAMMA: tl.constexpr):
    """Return factor * p^GAMMA. The power is computed from `surprise`, -log(p), so it is 0 and not NaN if p is 0."""
    if GAMMA == 0:
        result = factor
    elif GAMMA == 1:
        result = factor * p
    elif GAMMA == 2:
        result = factor * p * p
    else:
        result = factor * tl.exp(tl.full([], -GAMMA, surprise.dtype) * surprise)
    return result


@triton.jit
def sign_of(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x))


@triton.jit
def is_label(labels, target, label, o_c, labels_each, SEVERAL: tl.constexpr):
    """Tell for each query and class o_c, as (BLOCK_N, BLOCK_C), whether it is a label of the query's target.

    Args:
        labels: Pointer to the sample's labels.
        target: The target of each query, -1 for none.
        label: The first label of each query, as `find_labels` returns it.
        o_c: The classes.
        labels_each: The number of labels stored for each target.
        SEVERAL: Whether there may be more than one.
    """
    hit = o_c == label[:, None]
    if SEVERAL:
        for k in range(1, labels_each):
            more = tl.load(labels + target * labels_each + k, mask=target >= 0, other=-1)
            hit |= o_c == more[:, None]
    return hit


@triton.jit
def has_wrong_label(labels, target, label, classes, labels_each, SEVERAL: tl.constexpr):
    """Tell for each query (BLOCK_N,) whether its target has a label for which there is no logit."""
    wrong = (label < 0) | (label >= classes)
    if SEVERAL:
        for k in range(1, labels_each):
            more = tl.load(labels + target * labels_each + k, mask=target >= 0, other=-1)
            wrong |= (more < -1) | (more >= classes)
    return (target >= 0) & wrong


@triton.jit
def softmax_normalizer(
    logits, m_n, classes, CLASS_COST: tl.constexpr, DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Return max(x) and sum(exp(x - max(x))), (BLOCK_N,) each, over the `classes` logits at each pointer.

    Other class costs than "softmax" need neither, and get placeholders.
    """
    peak = tl.full([BLOCK_N], MINUS_INFINITY, DTYPE)
    total = tl.zeros([BLOCK_N], DTYPE)
    if CLASS_COST == "softmax":
        # The loops work element by element and reduce across the threads once at the end. A reduction in each round
        # would take most of the time. The second loop finds the logits in the cache.
        #
        # These are no `for` loops, because in those Triton re-arranges a reduction of loaded values. Versions 3.6 and
        # 3.7 carry that arrangement into the matching, where every thread then computes the costs of all columns.
        highest = tl.full([BLOCK_N, BLOCK_C], MINUS_INFINITY, DTYPE)
        first = classes * 0
        while first < classes:
            o_c = first + tl.arange(0, BLOCK_C)[None, :]
            highest = tl.maximum(highest, load_logits(logits, m_n, o_c, classes, MINUS_INFINITY, DTYPE))
            first += BLOCK_C
        peak = tl.max(highest, axis=1)

        # Infinity minus infinity would be NaN.
        shift = tl.where(peak == MINUS_INFINITY, 0.0, peak)[:, None]
        summed = tl.zeros([BLOCK_N, BLOCK_C], DTYPE)
        first = classes * 0
        while first < classes:
            o_c = first + tl.arange(0, BLOCK_C)[None, :]
            summed += tl.exp(load_logits(logits, m_n, o_c, classes, MINUS_INFINITY, DTYPE) - shift)
            first += BLOCK_C
        total = tl.sum(summed, axis=1)
    return peak, total


@triton.jit
def load_logits(logits, m_n, o_c, classes, other, DTYPE: tl.constexpr):
    return tl.load(logits[:, None] + o_c, mask=m_n[:, None] & (o_c < classes), other=other).to(DTYPE)


@triton.jit
def load_logit(pointer, label, classes, DTYPE: tl.constexpr):
    """Load the logit of class `label` at each pointer; NaN if there is no such class."""
    known = (label >= 0) & (label < classes)
    x = tl.load(pointer + tl.where(known, label, 0)).to(DTYPE)
    return tl.where(known, x, float("nan"))
