"""The kernels of the set loss and its gradient against loops in float64 and against the reference."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from actdet_kernels import MatchWeights, SetLoss, Targets, giou_loss, set_loss
from torch import Tensor

from tests.kernels.device import DEVICE, EACH_KERNEL, KINDS, POISONED
from tests.kernels.oracles import (
    LossCase,
    criterion,
    loss_case,
    random_boxes,
    random_targets,
    random_tubelets,
    weighted_sum,
)

pytestmark = POISONED
WEIGHTS = MatchWeights(1.3, 4.1, 0.7)

# Just past the blocks of 16 queries, 32 targets, 64 classes, 8 layers.
CASES: list[LossCase] = [
    ((), 12, 3, [1, 0, 3, 2], 3),
    ((4,), 5, 3, [1, 2], 4),
    ((2, 3), 5, 2, [2], 2),
    ((), 17, 65, [7, 3], 9),
    ((), 100, 92, [33], 33),
    ((9,), 1, 5, [3, 0], 3),
    ((2,), 2, 5, [4, 1, 0], 4),
    ((3,), 4, 3, [0, 0], 2),
    ((2,), 4, 3, [0, 0], 0),
    ((2,), 4, 3, [], 2),
    ((), 0, 3, [0, 0], 1),
    ((0,), 4, 3, [1], 1),
]


def surrounded(value: Tensor) -> Tensor:
    """The same in the middle of what makes a loss NaN or huge: NaN, or numbers that are no label, but are queries."""
    beyond = math.nan if value.is_floating_point() else 0 if value.ndim > 2 else 10**6
    room = torch.full((value.numel() + 128,), beyond, dtype=value.dtype, device=DEVICE)
    middle = room[64 : 64 + value.numel()].view(value.shape)
    return middle.copy_(value)


def on_device(logits: Tensor, boxes: Tensor, targets: Any, matched: Tensor) -> tuple[Tensor, Tensor, Any, Tensor]:
    """What `set_loss` takes, each within garbage, and predictions that want a gradient."""
    logits, boxes = (surrounded(value.detach()).detach().requires_grad_() for value in (logits, boxes))
    return logits, boxes, type(targets)(*map(surrounded, targets)), surrounded(matched)


def exactly(case: Any, options: dict[str, Any], cotangents: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The four losses (4, ...) of every layer by the oracle, in float64, and the gradients of their weighted sum."""
    logits, boxes, targets, matched = case
    leaves = [value.detach().double().requires_grad_() for value in (logits, boxes)]
    layers = math.prod(logits.shape[:-3])
    every = []
    flat_logits, flat_boxes = (value.reshape(layers, *value.shape[logits.ndim - 3 :]) for value in leaves)
    for index in range(layers):
        layer_matched = matched.reshape(layers, *matched.shape[-2:])[index]
        mine = (flat_logits[index], flat_boxes[index], targets, layer_matched)
        if targets.labels.shape[0] == 0 or logits.shape[-2] == 0:  # no query, of which torch has no mean
            terms = (torch.zeros((), dtype=torch.float64),) * 3
        else:
            terms = criterion(*mine, options["no_object_weight"], options["class_loss"])
        every.append([weighted_sum(WEIGHTS, terms), *terms])
    losses = [torch.stack([each[term] for each in every]) if every else torch.zeros(0).double() for term in range(4)]
    total = sum((loss * cotangent.reshape(-1)).sum() for loss, cotangent in zip(losses, cotangents, strict=True))
    gradients = [torch.zeros_like(value) for value in leaves]
    if isinstance(total, Tensor) and total.requires_grad:
        found = torch.autograd.grad(total, leaves, allow_unused=True)
        gradients = [zero if value is None else value for zero, value in zip(gradients, found, strict=True)]
    return [loss.reshape(logits.shape[:-3]) for loss in losses], gradients


def drawn_cotangents(shape: Any, seed: int = 19) -> Tensor:
    return torch.randn(4, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients_of(losses: SetLoss, leaves: Any, cotangents: Tensor) -> list[Tensor]:
    weights = [value.to(loss.dtype).to(DEVICE) for value, loss in zip(cotangents, losses, strict=True)]
    return [value.cpu() for value in torch.autograd.grad(losses, leaves, weights, retain_graph=True)]


@EACH_KERNEL
@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_losses_and_gradients_are_the_loops(kernels: Any, case: LossCase, class_loss: Any) -> None:
    """In float64, which leaves some 1e4 roundings; of each layer, and summed over the layers."""
    options: Any = {"no_object_weight": 0.3, "class_loss": class_loss}
    drawn = loss_case(*case, class_loss)
    leading = case[0]
    fewer = drawn[3].view(math.prod(leading), *drawn[3].shape[-2:])[1::2]  # other layers match fewer, and weigh less
    fewer[:, :, :1] = -1
    cotangents = drawn_cotangents(leading)
    wanted, slopes = exactly(drawn, options, cotangents)
    arguments = on_device(*drawn)
    got = set_loss(*arguments, weights=WEIGHTS, per_layer=True, backend=kernels, **options)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(gradients_of(got, arguments[:2], cotangents), slopes, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)

    got = set_loss(*arguments, weights=WEIGHTS, backend=kernels, **options)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine.cpu(), theirs.sum(), rtol=1e-12, atol=1e-12)
    cotangents = drawn_cotangents(())
    slopes = exactly(drawn, options, cotangents.reshape(4, *[1] * len(leading)).expand(4, *leading))[1]
    for mine, theirs in zip(gradients_of(got, arguments[:2], cotangents), slopes, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@EACH_KERNEL
@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("leading", [(), (4,), pytest.param((2, 3), marks=pytest.mark.slow)])
def test_gradients_of_every_subset_of_the_losses_are_the_references(
    kernels: Any, leading: tuple[int, ...], per_layer: bool, class_loss: Any
) -> None:
    arguments = on_device(*loss_case(leading, 5, 3, [2], 2, class_loss))
    options: Any = {"weights": WEIGHTS, "class_loss": class_loss, "per_layer": per_layer}
    mine, theirs = (set_loss(*arguments, backend=kind, **options) for kind in (kernels, "reference"))
    cotangents = drawn_cotangents(leading if per_layer else ()).to(DEVICE)
    subsets = [chosen for size in range(1, 5) for chosen in itertools.combinations(range(4), size)]
    for chosen in subsets:
        found, wanted = (
            torch.autograd.grad(
                [losses[index] for index in chosen],
                arguments[:2],
                [cotangents[index] for index in chosen],
                retain_graph=True,
                materialize_grads=True,
            )
            for losses in (mine, theirs)
        )
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@EACH_KERNEL
@pytest.mark.parametrize("per_layer", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
def test_gradients_are_the_finite_differences(kernels: Any, class_loss: Any, per_layer: bool) -> None:
    logits, boxes, targets, matched = on_device(*loss_case((2,), 3, 3, [2, 0, 1], 2, class_loss))

    def terms(logits: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        options: Any = {"class_loss": class_loss, "per_layer": per_layer, "backend": kernels}
        return tuple(set_loss(logits, boxes, targets, matched, **options))

    assert torch.autograd.gradcheck(terms, (logits, boxes), fast_mode=True)


@EACH_KERNEL
@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
@pytest.mark.parametrize("dtype", [pytest.param(torch.float16, marks=pytest.mark.slow), torch.bfloat16, torch.float32])
def test_low_precision_is_at_most_twice_as_far_off_as_the_reference(
    kernels: Any, dtype: torch.dtype, class_loss: Any
) -> None:
    """And one rounding of the output, from float64 on the same rounded inputs; a whole unit, as the interpreter
    truncates to bfloat16. The losses of five layers, relatively, lest the reference is right by chance.
    """
    logits, boxes, targets, matched = loss_case((5,), 17, 65, [3, 0, 2], 3, class_loss)
    case = (logits.to(dtype), boxes.to(dtype), targets._replace(boxes=targets.boxes.float()), matched)
    options: Any = {"no_object_weight": 0.1, "class_loss": class_loss}
    cotangents = drawn_cotangents((5,)).float()
    wanted, slopes = exactly(case, options, cotangents.double())
    arguments = on_device(*case)
    errors = {}
    for kind in (kernels, "reference"):
        got = set_loss(*arguments, weights=WEIGHTS, per_layer=True, backend=kind, **options)
        assert {loss.dtype for loss in got} == {torch.float32}
        found = gradients_of(got, arguments[:2], cotangents)
        assert {gradient.dtype for gradient in found} == {dtype}
        off = [((mine.cpu().double() - theirs) / theirs).abs().max() for mine, theirs in zip(got, wanted, strict=True)]
        errors[kind] = [max(off), *((mine.double() - theirs).abs() for mine, theirs in zip(found, slopes, strict=True))]
    assert errors[kernels][0] <= 2 * errors["reference"][0] + torch.finfo(torch.float32).eps
    for mine, theirs, slope in zip(errors[kernels][1:], errors["reference"][1:], slopes, strict=True):
        assert (mine <= 2 * theirs.max() + torch.finfo(dtype).eps * slope.abs()).all()


@EACH_KERNEL
@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
@pytest.mark.parametrize("per_layer", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_runs_give_the_same_bits_whatever_the_memory_held(
    kernels: Any, class_loss: Any, per_layer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, boxes, targets, matched = loss_case((3,), 17, 3, [2, 0, 3], 3, class_loss)
    arguments = on_device(logits.bfloat16(), boxes.float(), targets, matched)
    results = []
    for held in (0.0, 1e30, -7.0, -7.0):
        monkeypatch.setattr(
            "actdet_kernels.triton.launch.empty",
            lambda *shape, held=held: torch.empty(*shape[:1], dtype=shape[1], device=shape[2]).fill_(held),
        )
        got = set_loss(*arguments, class_loss=class_loss, per_layer=per_layer, backend=kernels)
        results.append([*got, *torch.autograd.grad(got.total.sum(), arguments[:2])])
    for one, *others in zip(*results, strict=True):
        assert all(torch.equal(one, other) for other in others)


SIZES = [
    (0.2, 0.3), (0.0, 0.0), (0.0, 0.3), (-0.2, 0.3), (-1.0, -1.0), (1e-20, 1e-20), (1e-20, 0.3), (1e10, 1e10),
    (1e10, 0.3), (2.0**-50, 2.0**-50),
]  # fmt: skip
PLACES = [(0.5, 0.5), (0.7, 0.5), (0.6, 0.65), (2.0, 0.5)]  # the same, sharing an edge of the first size, a part, none


def degenerate(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every size at every place beside every size: boxes, goals, by what a gradient is rounded, and whether it is one.

    The last is false at a kink at which PyTorch's own choice has changed: a side or an overlap of exactly 0.
    With areas A, B, their intersection I, union U and hull H, a gradient is a sum of these sides over areas, and both
    sides of this comparison start from the same corners.
    """
    pairs = list(itertools.product(SIZES, PLACES, SIZES))
    mine = torch.tensor([[*place, *size] for size, place, _ in pairs], dtype=dtype)
    goal = torch.tensor([[0.5, 0.5, *size] for *_, size in pairs], dtype=dtype)
    halves = [box[:, 2:].clamp(min=0) / 2 for box in (mine, goal)]
    low = [box[:, :2] - half for box, half in zip((mine, goal), halves, strict=True)]
    high = [box[:, :2] + half for box, half in zip((mine, goal), halves, strict=True)]
    side, other = ((b - a).double() for a, b in zip(low, high, strict=True))
    overlap = (torch.minimum(*high) - torch.maximum(*low)).double()
    hull = (torch.maximum(*high) - torch.minimum(*low)).double()
    union = side.prod(-1) + other.prod(-1) - overlap.clamp(min=0).prod(-1)
    by_union, by_hull = (torch.where(area > 2**-100, 1 / area, 0) for area in (union, hull.prod(-1)))
    size = (by_union + by_hull) * (side.sum(-1) + 2 * overlap.clamp(min=0).sum(-1)) + by_hull * hull.sum(-1)
    smooth = (mine[:, 2:] != 0).all(-1) & (overlap != 0).all(-1)
    return mine, goal, size, smooth


@EACH_KERNEL
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_degenerate_boxes_give_finite_losses_and_the_references_gradients(kernels: Any, dtype: torch.dtype) -> None:
    """Within 32 roundings of the largest of the terms that a gradient is the sum of."""
    mine, goal, size, smooth = degenerate(dtype)
    number, eps = len(mine), torch.finfo(dtype).eps
    targets = Targets(torch.zeros(1, number).long(), goal[None], torch.tensor([number], dtype=torch.int32))
    arguments = on_device(torch.zeros(1, number, 2, dtype=dtype), mine[None], targets, torch.arange(number)[None])
    results = []
    for kind in (kernels, "reference"):
        got = set_loss(*arguments, weights=WEIGHTS, backend=kind)
        assert torch.stack(got).isfinite().all()
        slopes = [torch.autograd.grad(loss * number, arguments[1], retain_graph=True)[0][0] for loss in got[2:]]
        results.append([torch.stack(got).cpu(), *(slope.cpu() for slope in slopes)])
    torch.testing.assert_close(results[0][0], results[1][0], rtol=32 * eps, atol=0)
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][2].isfinite().all()
    off = (results[0][2] - results[1][2]).abs().amax(-1).double()
    assert (off[smooth] <= 32 * eps * size[smooth]).all()


@EACH_KERNEL
def test_more_samples_than_a_block_has_sums(kernels: Any) -> None:
    """129 programs, one for each sample, and 129 counts."""
    case = loss_case((), 1, 2, [1, 0] * 64 + [1], 1, "cross_entropy")
    options: Any = {"no_object_weight": 0.3, "class_loss": "cross_entropy"}
    wanted = exactly(case, options, drawn_cotangents(()))[0]
    got = set_loss(*on_device(*case), weights=WEIGHTS, backend=kernels, **options)
    torch.testing.assert_close(torch.stack(got).detach().cpu(), torch.stack(wanted), rtol=1e-12, atol=0)


# Values


@EACH_KERNEL
@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_extreme_logits_give_the_references_losses_and_gradients(
    kernels: Any, class_loss: Any, dtype: torch.dtype
) -> None:
    low = -math.inf if class_loss == "cross_entropy" else -1e4
    rows = [[300.0, -300.0, 0.0], [-300.0, 300.0, 300.0], [low, 0.0, 1.0], [low, 300.0, low], [0.0, -300.0, low]]
    targets = random_targets([3], 4, 2, seed=3)
    targets.labels[0, :3] = torch.tensor([1, 0, 1])
    matched = torch.tensor([[0, 4, 2, -1]])
    arguments = on_device(torch.tensor([rows], dtype=dtype), random_boxes(1, 5, seed=3).to(dtype), targets, matched)
    finite = class_loss == "focal"  # no_object has probability zero in a row that must be it
    results = []
    for kind in (kernels, "reference"):
        got = set_loss(*arguments, class_loss=class_loss, backend=kind)
        results.append([*got, *torch.autograd.grad(got.total, arguments[:2])])
        assert got.cls.isfinite() == finite
        assert got.cls == math.inf or finite
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@EACH_KERNEL
def test_a_class_that_cannot_be_costs_nothing_where_nobody_wants_it(kernels: Any) -> None:
    """-inf is how a head masks a class."""
    logits, boxes, targets, matched = loss_case((), 5, 4, [2], 2, "cross_entropy")
    logits[..., 0], targets.labels[:] = -math.inf, 1
    options: Any = {"no_object_weight": 0.1, "class_loss": "cross_entropy"}
    without = (logits[..., 1:].clone(), boxes, targets._replace(labels=targets.labels - 1), matched)
    wanted, slopes = exactly(without, options, torch.ones(4).double())
    arguments = on_device(logits, boxes, targets, matched)
    got = set_loss(*arguments, weights=WEIGHTS, backend=kernels, **options)
    torch.testing.assert_close(torch.stack(got).detach().cpu(), torch.stack(wanted), rtol=1e-12, atol=0)
    gradient = gradients_of(got, arguments[:2], torch.ones(4))[0]
    torch.testing.assert_close(gradient[..., 1:], slopes[0], rtol=1e-12, atol=1e-12)
    assert (gradient[..., 0] == 0).all()


@EACH_KERNEL
@pytest.mark.parametrize("masked", [slice(64), slice(64, 128), slice(128, 130)])
def test_whole_blocks_of_classes_may_be_masked(kernels: Any, masked: slice) -> None:
    """64 logits at a time, of 130."""
    logits, boxes, targets, matched = loss_case((), 3, 130, [2], 2, "cross_entropy")
    logits[..., :129][..., masked] = -math.inf
    targets.labels[:] = 10 if masked.start == 64 else 100
    arguments = on_device(logits, boxes, targets, matched)
    wanted = torch.nn.functional.cross_entropy(
        logits[0],
        torch.tensor([targets.labels[0, 0] if query in matched[0].tolist() else 129 for query in range(3)]),
        torch.tensor([1.0] * 129 + [0.1], dtype=torch.float64),
    )
    got = set_loss(*arguments, backend=kernels)
    torch.testing.assert_close(got.cls.cpu(), wanted, rtol=1e-12, atol=0)
    assert all(value.isfinite().all() for value in torch.autograd.grad(got.total, arguments[:2]))


@EACH_KERNEL
@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
@pytest.mark.parametrize("label", [-1, 3, 64, 10**6, -(2**63), 2**63 - 1])
def test_a_label_without_a_logit_makes_the_loss_nan(kernels: Any, label: int, class_loss: Any) -> None:
    logits, boxes, targets, matched = loss_case((), 5, 3, [2, 1], 2, class_loss)
    targets.labels[1, 0] = label
    arguments = on_device(logits, boxes, targets, matched)
    got = set_loss(*arguments, class_loss=class_loss, per_layer=False, backend=kernels)
    assert torch.stack(got).isnan().tolist() == [True, True, False, False]
    torch.autograd.grad(got.total, arguments[:2])


@EACH_KERNEL
@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
def test_nan_shows_in_its_term_and_in_the_total(kernels: Any, class_loss: Any) -> None:
    logits, boxes, targets, matched = loss_case((), 17, 3, [1], 1, class_loss)
    for place in range(7):  # three logits and four numbers of a box
        values = (logits.clone(), boxes.clone())
        values[place > 2][0, matched[0, 0], place % 3 if place < 3 else place - 3] = math.nan
        got = set_loss(*on_device(*values, targets, matched), class_loss=class_loss, backend=kernels)
        assert torch.stack(got).isnan().tolist() == [True, place < 3, place > 2, place > 2]


@EACH_KERNEL
def test_no_object_may_be_the_label_of_a_target(kernels: Any) -> None:
    case = loss_case((2,), 5, 3, [2, 1], 2, "cross_entropy")
    case[2].labels[:] = 2
    options: Any = {"no_object_weight": 0.3, "class_loss": "cross_entropy"}
    wanted, slopes = exactly(case, options, torch.ones(4, 2).double())
    arguments = on_device(*case)
    got = set_loss(*arguments, weights=WEIGHTS, per_layer=True, backend=kernels, **options)
    torch.testing.assert_close(torch.stack(got).detach().cpu(), torch.stack(wanted), rtol=1e-12, atol=0)
    for one, other in zip(gradients_of(got, arguments[:2], torch.ones(4, 2)), slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@EACH_KERNEL
@pytest.mark.parametrize("counts", [[0, 0], [2, 0]])
def test_no_object_may_weigh_nothing(kernels: Any, counts: list[int]) -> None:
    """Without a target, all weights are 0: cls is 0, not NaN, and so are its gradients."""
    case = loss_case((2,), 5, 3, counts, 2, "cross_entropy")
    arguments = on_device(*case)
    results = []
    for kind in (kernels, "reference"):
        got = set_loss(*arguments, no_object_weight=0.0, backend=kind)
        results.append([*got, *torch.autograd.grad(got.total, arguments[:2])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    if sum(counts) == 0:
        assert not any(value.any() for value in results[0])


@EACH_KERNEL
@pytest.mark.parametrize("beyond", [-2, -(2**40), 5, 6, 15, 16, 2**32, 2**32 + 1, 2**62])
def test_a_target_matched_with_no_query_is_as_one_matched_with_none(kernels: Any, beyond: int) -> None:
    """Five queries: the lanes of a block past the last have no target, and no box of theirs is read."""
    logits, boxes, targets, matched = loss_case((), 5, 3, [2, 2], 2, "cross_entropy")
    matched[:, 1] = -1
    results = []
    for value in (-1, beyond):
        matched[:, 1] = value
        arguments = on_device(logits, boxes, targets, matched)
        got = set_loss(*arguments, backend=kernels)
        results.append([*got, *torch.autograd.grad(got.total, arguments[:2])])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@EACH_KERNEL
def test_rows_past_the_count_are_never_looked_at(kernels: Any) -> None:
    """Neither are they where `matched` claims a query for them."""
    logits, boxes, targets, matched = loss_case((2,), 5, 3, [1, 0, 2], 3, "cross_entropy")
    padding = ~targets.valid
    clean = targets._replace(
        labels=targets.labels.masked_fill(padding, 0), boxes=targets.boxes.masked_fill(padding[..., None], 0)
    )
    claimed = torch.where(targets.valid, matched, 3)
    results = []
    for goals, pairs in ((targets, matched), (clean, matched), (targets, claimed)):
        arguments = on_device(logits, boxes, goals, pairs)
        got = set_loss(*arguments, backend=kernels)
        results.append([*got, *torch.autograd.grad(got.total, arguments[:2])])
    for one, *others in zip(*results, strict=True):
        assert one.isfinite().all()
        assert all(torch.equal(one, other) for other in others)


# Layout, dtypes and graphs


@EACH_KERNEL
@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
def test_any_strides_do(kernels: Any, class_loss: Any) -> None:
    logits, boxes, targets, matched = loss_case((2,), 17, 3, [2, 4, 3], 4, class_loss)
    cotangents = drawn_cotangents((2,))
    results = []
    for strided in (False, True):
        leaves = [value.to(DEVICE).requires_grad_() for value in (logits, boxes)]
        views: list[Any] = [*leaves, targets.to(DEVICE), matched.to(DEVICE)]
        weights = list(cotangents.to(DEVICE))
        if strided:
            views = [
                views[0].mT.contiguous().mT,
                views[1].repeat_interleave(2, 2)[:, :, ::2],
                Targets(*(value.repeat_interleave(2, 0)[::2] for value in views[2])),
                views[3].mT.contiguous().mT,
            ]
            weights = [value.repeat_interleave(3)[::3] for value in weights]
            assert not any(value.is_contiguous() for value in (*views[:2], *views[2], views[3], *weights))
        got = set_loss(*views, class_loss=class_loss, per_layer=True, backend=kernels)
        results.append([*got, *torch.autograd.grad(got, leaves, weights)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@EACH_KERNEL
def test_a_gradient_may_come_expanded(kernels: Any) -> None:
    """As from `.sum()`, whose gradient has stride 0."""
    arguments = on_device(*loss_case((3,), 5, 3, [2], 2, "cross_entropy"))
    got = set_loss(*arguments, per_layer=True, backend=kernels).total
    one = torch.autograd.grad(got.sum(), arguments[:2], retain_graph=True)
    other = torch.autograd.grad(got, arguments[:2], torch.ones_like(got))
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@EACH_KERNEL
@pytest.mark.parametrize(
    "kinds", list(itertools.permutations([torch.float64, torch.float32, torch.bfloat16, torch.float16], 2))
)
def test_logits_and_boxes_of_two_types_get_gradients_of_theirs(
    kernels: Any, kinds: tuple[torch.dtype, torch.dtype]
) -> None:
    if DEVICE.type == "cpu" and set(kinds) == {torch.float64, torch.bfloat16}:
        pytest.skip("Triton's interpreter cannot store float64 as bfloat16")
    logits, boxes, targets, matched = loss_case((), 5, 3, [2, 1], 2, "cross_entropy")
    case = (logits.to(kinds[0]), boxes.to(kinds[1]), targets._replace(boxes=targets.boxes.float()), matched)
    options: Any = {"no_object_weight": 0.1, "class_loss": "cross_entropy"}
    wanted, slopes = exactly(case, options, torch.ones(4).double())
    arguments = on_device(*case)
    got = set_loss(*arguments, weights=WEIGHTS, backend=kernels, **options)
    widest = torch.float64 if torch.float64 in kinds else torch.float32
    assert {loss.dtype for loss in got} == {widest}
    eps = torch.finfo(widest).eps
    torch.testing.assert_close(torch.stack(got).cpu().double(), torch.stack(wanted), rtol=16 * eps, atol=0)
    for kind, one, other in zip(kinds, gradients_of(got, arguments[:2], torch.ones(4)), slopes, strict=True):
        assert one.dtype == kind
        error = torch.finfo(kind).eps * (other.abs() + torch.finfo(kind).tiny) + 32 * eps * other.abs().max()
        assert ((one.double() - other).abs() <= error).all()


@EACH_KERNEL
@pytest.mark.parametrize("wanting", [0, 1])
def test_a_gradient_goes_only_where_it_is_wanted(kernels: Any, wanting: int) -> None:
    arguments = on_device(*loss_case((), 5, 3, [2], 2, "cross_entropy"))
    both = torch.autograd.grad(set_loss(*arguments, backend=kernels).total, arguments[:2])
    arguments[1 - wanting].requires_grad_(False)
    got = set_loss(*arguments, backend=kernels).total
    assert torch.equal(torch.autograd.grad(got, arguments[wanting])[0], both[wanting])
    arguments[wanting].requires_grad_(False)
    assert not set_loss(*arguments, backend=kernels).total.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_targets_get_no_gradient(kind: Any) -> None:
    logits, boxes, targets, matched = on_device(*loss_case((), 5, 3, [2], 2, "cross_entropy"))
    goal = targets.boxes.detach().requires_grad_()
    set_loss(logits, boxes, targets._replace(boxes=goal), matched, backend=kind).total.backward()
    assert goal.grad is None
    constants = (logits.detach(), boxes.detach(), targets._replace(boxes=goal), matched)
    assert not set_loss(*constants, backend=kind).total.requires_grad


SECOND = "set_loss has no second derivative with the kernels: use backend='reference'"


@EACH_KERNEL
@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
@pytest.mark.parametrize("wanting", [0, 1])
@pytest.mark.parametrize("squared", [False, True])
def test_a_second_derivative_is_refused(kernels: Any, squared: bool, wanting: int, class_loss: Any) -> None:
    """Where what reaches the loss wants a gradient, as from a square, and where it is a constant."""
    arguments = on_device(*loss_case((), 3, 3, [1], 1, class_loss))
    loss = set_loss(*arguments, class_loss=class_loss, backend=kernels).total
    loss = loss**2 if squared else loss
    slope = torch.autograd.grad(loss, arguments[wanting], create_graph=True)[0]
    penalized = loss + slope.square().sum()
    with pytest.raises(RuntimeError, match=SECOND):
        penalized.backward()


@EACH_KERNEL
def test_a_second_derivative_of_tubelets_and_of_one_term_is_refused(kernels: Any) -> None:
    targets = random_tubelets([2], 2, 3, 2, seed=1).to(DEVICE)
    logits, boxes = (torch.rand(1, 4, *rest, device=DEVICE, requires_grad=True) for rest in ((3,), (3, 4)))
    loss = set_loss(logits, boxes, targets, torch.tensor([[1, 2]], device=DEVICE), per_layer=True, backend=kernels)
    for term in loss:
        slope = torch.autograd.grad(term, boxes, create_graph=True)[0]
        with pytest.raises(RuntimeError, match=SECOND):
            torch.autograd.grad(slope.sum(), logits, allow_unused=True)


@EACH_KERNEL
def test_a_graph_of_the_gradient_that_nobody_differentiates_is_no_error(kernels: Any) -> None:
    arguments = on_device(*loss_case((), 3, 3, [1], 1, "cross_entropy"))
    loss = set_loss(*arguments, backend=kernels).total
    wanted = torch.autograd.grad(loss, arguments[:2], retain_graph=True)
    found = torch.autograd.grad(loss, arguments[:2], create_graph=True)
    assert all(torch.equal(*pair) for pair in zip(wanted, found, strict=True))


@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
def test_the_reference_has_second_derivatives(class_loss: Any) -> None:
    logits, boxes, targets, matched = on_device(*loss_case((), 3, 3, [2, 1], 2, class_loss))

    def terms(logits: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        return tuple(set_loss(logits, boxes, targets, matched, class_loss=class_loss, backend="reference"))

    assert torch.autograd.gradgradcheck(terms, (logits, boxes))
    goal = targets.boxes[:, :1].nan_to_num(0.4)
    assert torch.autograd.gradgradcheck(lambda boxes: giou_loss(boxes, goal), (boxes,))


# Where kernels and reference once differed


@EACH_KERNEL
@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.float64])
def test_gradients_at_a_kink_are_the_references(kernels: Any, dtype: torch.dtype) -> None:
    """With every PyTorch: the derivative of clamp(min=0) at 0 is 0 in 2.15, and was 1."""
    mine, goal, size, _ = degenerate(dtype)
    number = len(mine)
    targets = Targets(torch.zeros(1, number).long(), goal[None], torch.tensor([number], dtype=torch.int32))
    arguments = on_device(torch.zeros(1, number, 2, dtype=dtype), mine[None], targets, torch.arange(number)[None])
    slopes = []
    for kind in (kernels, "reference"):
        loss = set_loss(*arguments, backend=kind).giou * number
        slopes.append(torch.autograd.grad(loss, arguments[1])[0][0].cpu().double())
    off = (slopes[0] - slopes[1]).abs().amax(-1)
    assert (off <= 32 * torch.finfo(dtype).eps * size).all()


def test_the_reference_has_a_loss_without_queries_too() -> None:
    arguments = on_device(*loss_case((), 0, 3, [1], 1, "cross_entropy"))
    assert torch.stack(set_loss(*arguments, backend="reference")).tolist() == [0] * 4


@pytest.mark.parametrize("kinds", [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_the_references_losses_have_one_type_too(kinds: tuple[torch.dtype, torch.dtype]) -> None:
    logits, boxes, targets, matched = loss_case((), 5, 3, [2, 1], 2, "cross_entropy")
    arguments = on_device(logits.to(kinds[0]), boxes.to(kinds[1]), targets, matched)
    assert {loss.dtype for loss in set_loss(*arguments, backend="reference")} == {torch.float64}


@pytest.mark.parametrize("place", range(4))
def test_the_references_giou_shows_nan_too(place: int) -> None:
    box = torch.tensor([0.5, 0.5, 0.2, 0.2])
    box[place] = math.nan
    assert giou_loss(box, torch.tensor([0.5, 0.5, 0.3, 0.3])).isnan()


@EACH_KERNEL
def test_the_references_focal_loss_takes_a_logit_of_minus_infinity_too(kernels: Any) -> None:
    """It gives 0: the class is certainly absent."""
    logits, boxes, targets, matched = loss_case((), 5, 3, [1], 1, "focal")
    targets.labels[:] = 1
    logits[..., 0] = -math.inf
    arguments = on_device(logits, boxes, targets, matched)
    mine, theirs = (set_loss(*arguments, class_loss="focal", backend=kind).cls for kind in (kernels, "reference"))
    torch.testing.assert_close(mine, theirs)
