"""Counts, labels and matchings that there cannot be: all implementations give the same, read nothing that is not
theirs, and `check` names the sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from actdet_kernels import Targets, Tubelets, assign, match, pairwise_cost, set_loss, solve_matching
from torch import Tensor

from tests.kernels.device import DEVICE, KINDS, POISONED
from tests.kernels.oracles import loss_case, random_boxes, random_tubelets

pytestmark = POISONED
LOSSES: Any = ("cross_entropy", "focal")
BATCH, QUERIES, CLASSES, SIZE = 2, 5, 3, 3


def make(class_loss: str = "focal", tubelets: bool = False) -> tuple[Tensor, Tensor, Any, Tensor]:
    """logits, boxes, targets, matched: two samples, both with all of their targets, under two layers."""
    logits, boxes, targets, matched = loss_case((2,), QUERIES, CLASSES, [SIZE, SIZE], SIZE, class_loss)
    if tubelets:
        targets = random_tubelets([SIZE, SIZE], SIZE, 2, 2, seed=3)._replace(labels=targets.labels)
        boxes = random_boxes(2, BATCH, QUERIES, 2, seed=4)
    logits, boxes = (value.to(DEVICE).requires_grad_() for value in (logits, boxes))
    return logits, boxes, targets.to(DEVICE), matched.to(DEVICE)


def everything(
    logits: Tensor, boxes: Tensor, targets: Any, matched: Tensor, kind: Any, class_loss: Any
) -> list[Tensor]:
    """Cost, matching, status, losses and gradients."""
    class_cost: Any = {"cross_entropy": "softmax"}.get(class_loss, class_loss)
    cost = pairwise_cost(logits, boxes, targets, class_cost=class_cost, backend=kind)
    matching = solve_matching(logits, boxes, targets, class_cost=class_cost, backend=kind)
    losses = set_loss(logits, boxes, targets, matched, class_loss=class_loss, per_layer=True, backend=kind)
    gradients = torch.autograd.grad(losses.total.sum(), [logits, boxes])
    return [cost, *matching, *(loss.detach() for loss in losses), *gradients]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.allclose(*pair, rtol=0, atol=0, equal_nan=True) for pair in zip(one, other, strict=True))


def close(*found: list[Tensor]) -> None:
    """All but the matching, of which several may cost the same."""
    *ours, other = found
    for one in ours:
        for mine, theirs in zip(one[:1] + one[2:], other[:1] + other[2:], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12, equal_nan=True)


# Counts


@pytest.mark.parametrize("tubelets", [False, True])
@pytest.mark.parametrize(
    ("counts", "dtype"),
    [
        ([SIZE + 1, 2], torch.int32),
        ([-1, 3], torch.int64),
        ([-(2**31), 2**31 - 1], torch.int32),
        ([2**40, -(2**40) + 5], torch.int64),
        ([-(2**63), 1], torch.int64),
    ],
)
def test_a_count_beyond_is_as_the_nearest_that_can_be(counts: list[int], dtype: torch.dtype, tubelets: bool) -> None:
    logits, boxes, targets, matched = make(tubelets=tubelets)
    wild = targets._replace(counts=torch.tensor(counts, dtype=dtype, device=DEVICE))
    tame = targets._replace(counts=wild.counts.clamp(0, SIZE))
    *ours, theirs = (everything(logits, boxes, wild, matched, kind, "focal") for kind in KINDS)
    close(*ours, theirs)
    assert equal(theirs, everything(logits, boxes, tame, matched, "reference", "focal"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int16, torch.uint8])
def test_counts_of_another_type_are_refused(dtype: torch.dtype, kind: Any) -> None:
    logits, boxes, targets, matched = make()
    wrong = targets._replace(counts=targets.counts.to(dtype))
    for operation in (pairwise_cost, match, lambda *rest, **kept: set_loss(*rest, matched=matched, **kept)):
        with pytest.raises(ValueError, match=f"^targets.counts must be int32 or int64, got {dtype}$"):
            operation(logits, boxes, wrong, backend=kind)
    with pytest.raises(ValueError, match=f"^counts must be int32 or int64 on .*, got {dtype} on "):
        assign(torch.zeros(2, 3, 3, device=DEVICE), wrong.counts, backend=kind)


# Labels


@pytest.mark.parametrize("class_loss", LOSSES)
@pytest.mark.parametrize("label", [-1, CLASSES, 10**6, -(2**63), 2**63 - 1])
def test_a_label_that_there_is_not_is_nan_in_values_and_gradients(label: int, class_loss: Any) -> None:
    """Of its target and query alone, as far as they are not added up."""
    logits, boxes, targets, matched = make(class_loss)
    targets.labels[1, 2] = label
    found = [everything(logits, boxes, targets, matched, kind, class_loss) for kind in KINDS]
    close(*found)
    for cost, pairs, status, total, cls, l1, giou, d_logits, d_boxes in found:
        assert cost.isnan().nonzero()[:, 1::2].unique(dim=0).tolist() == [[1, 2]]
        assert (pairs[:, 0].sort(-1).values.diff(dim=-1) > 0).all()
        assert status.tolist() == [[0, 3]] * 2
        assert torch.stack([total, cls]).isnan().all()
        assert torch.stack([l1, giou]).isfinite().all()
        unknown = torch.zeros(2, BATCH, QUERIES, dtype=torch.bool, device=DEVICE)
        unknown[:, 1].scatter_(-1, matched[:, 1, 2:], True)
        assert torch.equal(d_logits.isnan(), unknown[..., None].expand_as(d_logits))
        assert d_boxes.isfinite().all()


@pytest.mark.parametrize("class_loss", LOSSES)
def test_a_label_that_there_is_not_does_not_matter_to_a_target_without_a_query(class_loss: Any) -> None:
    logits, boxes, targets, matched = make(class_loss)
    targets.labels[1, 2], matched[:, 1, 2] = CLASSES, -1
    found = [everything(logits, boxes, targets, matched, kind, class_loss) for kind in KINDS]
    assert all(value.isfinite().all() for value in found[0][3:])
    close(*found)


# Matchings


@pytest.mark.parametrize("class_loss", LOSSES)
@pytest.mark.parametrize("beyond", [-2, -(2**63), QUERIES, QUERIES + 1, 2**32, 2**63 - 1])
def test_a_query_that_there_is_not_is_as_none(beyond: int, class_loss: Any) -> None:
    logits, boxes, targets, matched = make(class_loss)
    matched[:, 1, 1] = beyond
    *ours, theirs = (everything(logits, boxes, targets, matched, kind, class_loss) for kind in KINDS)
    close(*ours, theirs)
    matched[:, 1, 1] = -1
    assert equal(theirs, everything(logits, boxes, targets, matched, "reference", class_loss))


@pytest.mark.parametrize("class_loss", LOSSES)
def test_a_query_given_twice_belongs_to_the_last_of_its_targets(class_loss: Any) -> None:
    logits, boxes, targets, matched = make(class_loss)
    matched[:, 0] = 4
    *ours, theirs = (everything(logits, boxes, targets, matched, kind, class_loss) for kind in KINDS)
    close(*ours, theirs)
    matched[:, 0, :2] = -1
    assert equal(theirs, everything(logits, boxes, targets, matched, "reference", class_loss))


# What check says


def with_count(targets: Any, matched: Tensor) -> None:
    targets.counts[1] = SIZE + 4


def with_negative_count(targets: Any, matched: Tensor) -> None:
    targets.counts[0] = -1


def with_label(targets: Any, matched: Tensor) -> None:
    targets.labels[1, 2] = CLASSES


def with_negative_label(targets: Any, matched: Tensor) -> None:
    targets.labels[0, 1] = -1


def with_query(targets: Any, matched: Tensor) -> None:
    matched[1, 0, 2] = QUERIES


def with_negative_query(targets: Any, matched: Tensor) -> None:
    matched[0, 1, 0] = -2


def with_query_twice(targets: Any, matched: Tensor) -> None:
    matched[1, 0] = torch.tensor([3, 1, 3])


@pytest.mark.parametrize("tubelets", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_count, r"targets.counts\[1\] must be 0 to 3, got 7"),
        (with_negative_count, r"targets.counts\[0\] must be 0 to 3, got -1"),
        (with_label, r"targets.labels\[1, 2\] must be 0 to 2, got 3"),
        (with_negative_label, r"targets.labels\[0, 1\] must be 0 to 2, got -1"),
        (with_query, r"matched\[1, 0, 2\] must be one of 5 queries or -1 for none, got 5"),
        (with_negative_query, r"matched\[0, 1, 0\] must be one of 5 queries or -1 for none, got -2"),
        (with_query_twice, r"matched gives query 3 of problem \(1, 0\) twice"),
    ],
)
def test_check_names_the_sample_and_the_value(
    change: Callable[[Any, Tensor], None], message: str, kind: Any, tubelets: bool
) -> None:
    logits, boxes, targets, matched = make(tubelets=tubelets)
    set_loss(logits, boxes, targets, matched, check=True, backend=kind)
    match(logits, boxes, targets, check=True, backend=kind)
    change(targets, matched)
    with pytest.raises(ValueError, match=f"^{message}$"):
        set_loss(logits, boxes, targets, matched, check=True, backend=kind)
    if "matched" not in message:
        with pytest.raises(ValueError, match=f"^{message}$"):
            match(logits, boxes, targets, check=True, backend=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_check_leaves_alone_what_lies_past_the_count(kind: Any) -> None:
    logits, boxes, targets, matched = make()
    targets.counts[:] = torch.tensor([1, 0])
    targets.labels[0, 1:], targets.labels[1] = -1, 10**6
    matched[:, 0, 1:], matched[:, 1] = -7, 0
    set_loss(logits, boxes, targets, matched, check=True, backend=kind)
    match(logits, boxes, targets, check=True, backend=kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [-1, 4, 2**40])
def test_check_names_a_count_of_an_assignment(count: int, kind: Any) -> None:
    counts = torch.tensor([3, count], device=DEVICE)
    cost = torch.rand(2, 4, 3, device=DEVICE)
    assert torch.equal(assign(cost, counts, backend=kind), assign(cost, counts.clamp(0, 3), backend=kind))
    with pytest.raises(ValueError, match=rf"^counts\[1\] must be 0 to 3, got {count}$"):
        assign(cost, counts, check=True, backend=kind)


# Memory


@pytest.mark.skipif(DEVICE.type != "cpu", reason="needs the interpreter")
@pytest.mark.parametrize("class_loss", LOSSES)
@pytest.mark.parametrize("tubelets", [False, True])
@pytest.mark.parametrize("queries", [1, QUERIES])
def test_nothing_is_read_or_written_that_is_not_an_arguments(
    queries: int, tubelets: bool, class_loss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever counts, labels and matchings hold: not even where it would count for nothing."""
    from actdet_kernels.triton import launch
    from triton.runtime.interpreter import InterpreterBuilder

    ranges: list[tuple[int, int]] = []
    touched: list[np.ndarray] = []
    run, load, store = launch.launch, InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def launched(kernel: Any, programs: int, **arguments: Any) -> None:
        ranges[:] = [(value.data_ptr(), value.nbytes) for value in arguments.values() if isinstance(value, Tensor)]
        touched.clear()
        run(kernel, programs, **arguments)
        addresses = np.unique(np.concatenate([np.zeros(0, np.uint64), *touched])).astype(np.int64)
        within = np.zeros(len(addresses), dtype=bool)
        for first, size in ranges:
            within |= (addresses >= first) & (addresses < first + size)
        assert within.all(), kernel

    def loaded(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        touched.append(pointers.data[mask.data].ravel())
        return load(self, pointers, mask, *rest)

    def stored(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        touched.append(pointers.data[mask.data].ravel())
        return store(self, pointers, value, mask, *rest)

    monkeypatch.setattr(launch, "launch", launched)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", loaded)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", stored)
    logits, boxes, targets, matched = make(class_loss, tubelets)
    logits, boxes = (value[:, :, :queries].detach().requires_grad_() for value in (logits, boxes))
    targets = targets._replace(counts=torch.tensor([2**40, SIZE]))
    targets.labels[0], targets.labels[1] = torch.tensor([-1, CLASSES, 2**63 - 1]), torch.tensor([-(2**63), 0, 2**33])
    matched[:, 0], matched[:, 1] = torch.tensor([-2, 2**32, 0]), torch.tensor([queries, -(2**63), 2**63 - 1])
    everything(logits, boxes, targets, matched, "triton", class_loss)
    targets = targets._replace(counts=torch.tensor([-(2**40) + 7, -1]))
    everything(logits, boxes, targets, matched, "triton", class_loss)


# Sizes of zero


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tubelets", [False, True])
def test_predictions_without_a_class_are_refused(tubelets: bool, kind: Any) -> None:
    logits, boxes, targets, matched = make(tubelets=tubelets)
    for operation in (pairwise_cost, match, lambda *rest, **kept: set_loss(*rest, matched=matched, **kept)):
        with pytest.raises(ValueError, match=r"^logits \(..., B, N, C\) must have a class, got \(2, 2, 5, 0\)$"):
            operation(logits[..., :0], boxes, targets, backend=kind)


@pytest.mark.parametrize("class_loss", LOSSES)
def test_a_single_class_is_enough(class_loss: Any) -> None:
    logits, boxes, targets, matched = make(class_loss)
    targets.labels[:] = torch.tensor([0, 1, -1])
    logits = logits[..., :1].detach().requires_grad_()
    found = [everything(logits, boxes, targets, matched, kind, class_loss) for kind in KINDS]
    close(*found)


# layers, samples, queries, targets, frames
NOTHING = [(0, 2, 4, 3, 2), (2, 0, 4, 3, 2), (2, 2, 0, 3, 2), (2, 2, 4, 0, 2), (2, 2, 4, 3, 0), (0, 0, 0, 0, 0)]


@pytest.mark.parametrize("class_loss", LOSSES)
@pytest.mark.parametrize("tubelets", [False, True])
@pytest.mark.parametrize("sizes", NOTHING, ids=str)
def test_nothing_of_a_kind_gives_the_same_in_all(sizes: tuple[int, ...], tubelets: bool, class_loss: Any) -> None:
    layers, batch, queries, size, frames = sizes
    tube = (frames,) if tubelets else ()
    logits = torch.randn(layers, batch, queries, CLASSES, dtype=torch.float64, device=DEVICE, requires_grad=True)
    boxes = torch.rand(layers, batch, queries, *tube, 4, dtype=torch.float64, device=DEVICE, requires_grad=True)
    labels = torch.ones(batch, size, dtype=torch.int64, device=DEVICE)
    goals = torch.rand(batch, size, *tube, 4, dtype=torch.float64, device=DEVICE)
    counts = torch.full((batch,), size, dtype=torch.int32, device=DEVICE)
    targets: Any = Targets(labels, goals, counts)
    if tubelets:
        targets = Tubelets(labels, goals, counts, torch.ones(batch, size, frames, dtype=torch.bool, device=DEVICE))
    matched = match(logits, boxes, targets, check=True, backend="reference")
    set_loss(logits, boxes, targets, matched, check=True, backend="reference")
    found = [everything(logits, boxes, targets, matched, kind, class_loss) for kind in KINDS]
    close(*found)
    for values in found:
        assert all(value.isfinite().all() for value in values)
        assert ((values[1] >= 0).sum(-1) == min(queries, size)).all()
        assert math.prod(values[2].shape) == layers * batch
