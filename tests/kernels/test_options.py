"""What else a cost and a loss can be than the default: both implementations against other libraries in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from actdet_kernels import (
    MatchWeights,
    Targets,
    denoising_queries,
    match,
    pairwise_cost,
    reference,
    repeat_targets,
    set_loss,
)
from actdet_kernels.detr import HungarianMatcher, SetCriterion
from device import DEVICE, HAS_TRITON, POISONED
from oracles import (
    costs,
    criterion,
    labels_of,
    loss_case,
    random_boxes,
    random_logits,
    random_targets,
    random_tubelets,
    sigmoid_class_costs,
    sigmoid_class_loss,
    tubelet_costs,
    tubelet_criterion,
)
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, complete_box_iou_loss

pytestmark = POISONED
WEIGHTS = MatchWeights(1.3, 4.1, 0.7)
KINDS = ["triton", "reference"]

# leading, queries, classes, counts, size
CASES = [((2,), 12, 3, [1, 0, 3], 3), ((), 5, 65, [7, 3], 9)]


def on_device(logits: Tensor, boxes: Tensor, targets: Any, matched: Tensor) -> tuple[Tensor, Tensor, Any, Tensor]:
    leaves = [value.detach().clone().to(DEVICE).requires_grad_() for value in (logits, boxes)]
    return *leaves, targets.to(DEVICE), matched.to(DEVICE)


def check_loss(case: tuple[Any, ...], terms: Any, kind: Any, **options: Any) -> None:
    """The losses, and the gradients of a weighted sum of them, are those of `terms` (cls, l1, giou), to 1e-12."""
    leaves = [value.detach().clone().requires_grad_() for value in case[:2]]
    wanted = terms(*leaves)
    total = sum(weight * term for weight, term in zip(WEIGHTS, wanted, strict=True))
    cotangents = torch.tensor([0.7, -1.3, 0.4, 2.1], dtype=torch.float64)
    weighted = sum(cotangent * value for cotangent, value in zip(cotangents, (total, *wanted), strict=True))
    theirs = torch.autograd.grad(weighted, leaves, allow_unused=True, materialize_grads=True)

    arguments = on_device(*case)
    got = set_loss(*arguments, weights=WEIGHTS, backend=kind, **options)
    for one, other in zip(got, (total, *wanted), strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-12, atol=1e-12)
    mine = torch.autograd.grad(got, arguments[:2], list(cotangents.to(DEVICE)))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-12, atol=1e-12)


def same_in_both(*arguments: Any, error: float, **options: Any) -> tuple[Any, tuple[Tensor, ...]]:
    """The kernels' losses and gradients, which are finite and the reference's to within `error` of the largest."""
    results = []
    for kind in KINDS:
        got = set_loss(*arguments, backend=kind, **options)  # pyright: ignore[reportArgumentType]
        results.append((got, torch.autograd.grad(got.total, arguments[:2])))
    (losses, gradients), (their_losses, their_gradients) = results
    assert all(value.isfinite().all() for value in (*losses, *gradients))
    pairs = zip((*losses, *gradients), (*their_losses, *their_gradients), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=error, atol=error * max(other.abs().max().item(), 1e-30))
    return losses, gradients


# Alpha and gamma of the focal cost and of the focal loss

FOCAL = [(0.25, 0.0), (0.3, 1.0), (0.9, 2.0), (0.6, 0.3), (1.0, 3.7)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("alpha", "gamma"), FOCAL)
def test_the_focal_cost_takes_alpha_and_gamma(alpha: float, gamma: float, kind: Any) -> None:
    counts = [3, 0, 7]
    targets = random_targets(counts, 7, 9, seed=8)
    logits = random_logits(2, 3, 5, 9, seed=8)
    boxes = random_boxes(2, 3, 5, seed=9)
    arguments = (logits.to(DEVICE), boxes.to(DEVICE), targets.to(DEVICE))
    options: Any = {"weights": WEIGHTS, "class_cost": "focal", "alpha": alpha, "gamma": gamma, "backend": kind}
    wanted = costs(logits, boxes, targets, WEIGHTS, "focal", alpha, gamma)
    torch.testing.assert_close(pairwise_cost(*arguments, **options).cpu(), wanted, rtol=1e-12, atol=1e-12)

    matched = match(*arguments, **options)
    problems = zip(wanted.flatten(0, 1).numpy(), matched.flatten(0, 1).tolist(), counts * 2, strict=True)
    for matrix, queries, count in problems:
        pairs = [(query, target) for target, query in enumerate(queries) if query != -1]
        best = matrix[:, :count][linear_sum_assignment(matrix[:, :count])].sum()
        assert len({query for query, _ in pairs}) == len(pairs) == min(count, 5)
        assert math.fsum(matrix[pair] for pair in pairs) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("alpha", "gamma"), FOCAL)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_focal_loss_is_torchvisions_with_every_alpha_and_gamma(
    case: Any, alpha: float, gamma: float, kind: Any
) -> None:
    logits, boxes, targets, matched = loss_case(*case, "focal")

    def terms(logits: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        return criterion(logits, boxes, targets, matched, 0.1, "focal", alpha, gamma)

    check_loss((logits, boxes, targets, matched), terms, kind, class_loss="focal", alpha=alpha, gamma=gamma)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 1.5, 3.7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_probabilities_of_0_and_1_give_the_limits_of_the_focal_loss(dtype: torch.dtype, gamma: float) -> None:
    """sigmoid(-200) is 0 in float32, and sigmoid(-8192) in float64, too."""
    rows = [[200.0, -200.0, 0.0], [-8192.0, 8192.0, 200.0], [-200.0, 8192.0, -8192.0], [0.0, 40.0, -40.0]]
    targets = random_targets([4], 4, 3, seed=3)
    targets.labels[0] = torch.tensor([0, 0, 2, 1])
    logits = torch.tensor([rows], dtype=dtype)
    arguments = on_device(logits, random_boxes(1, 4, seed=3).to(dtype), targets, torch.tensor([[0, 1, 2, 3]]))
    error = 8 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    losses, _ = same_in_both(*arguments, error=max(error, torch.finfo(dtype).eps / 2), class_loss="focal", gamma=gamma)
    # Where p is 0 or 1, (1 - p)^gamma is 1 or 0: for a gamma above 0, what is right of each class costs nothing.
    wrong = 0.25 * (8192.0 + 8192.0) + 0.75 * (8192.0 + 200 + 8192.0)
    unsure = (0.75 + 0.75) * 0.5**gamma * math.log(2)
    assert losses.cls.item() == pytest.approx((wrong + unsure) / 4, rel=1e-4)

    cost = pairwise_cost(*arguments[:3], class_cost="focal", gamma=gamma, backend="triton")
    wanted = pairwise_cost(*arguments[:3], class_cost="focal", gamma=gamma, backend="reference")
    assert cost.isfinite().all()
    torch.testing.assert_close(cost, wanted, rtol=max(2 * error, torch.finfo(dtype).eps), atol=error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, r"alpha must be in \[0, 1\], got -0.1"),
        ({"alpha": math.nan}, r"alpha must be in \[0, 1\], got nan"),
        ({"gamma": -1.0}, "gamma must be finite and at least 0, got -1.0"),
        ({"gamma": math.inf}, "gamma must be finite and at least 0, got inf"),
    ],
)
def test_what_is_no_alpha_or_gamma_is_refused(options: Any, message: str) -> None:
    logits, boxes, targets, matched = loss_case((), 4, 3, [1], 1, "focal")
    with pytest.raises(ValueError, match=message):
        match(logits, boxes, targets, **options)
    with pytest.raises(ValueError, match=message):
        pairwise_cost(logits, boxes, targets, **options)
    with pytest.raises(ValueError, match=message):
        set_loss(logits, boxes, targets, matched, **options)


# DIoU and CIoU

if HAS_TRITON:
    import triton
    import triton.language as tl
    from actdet_kernels.triton.boxes import arctan

    @triton.jit
    def arctan_kernel(y, x, out, BLOCK: tl.constexpr):
        o = tl.arange(0, BLOCK)
        tl.store(out + o, arctan(tl.load(y + o), tl.load(x + o)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_kernels_arctangent_is_numpys(dtype: torch.dtype) -> None:
    """Of quotients of any size, within four units in the last place, signs and limits included."""
    exponents = np.concatenate([np.linspace(-30, 30, 900), np.linspace(-1, 1, 2100)])
    quotient = np.append(2.0**exponents * np.tile([1, -1], 1500), [0.0, 1.0, -1.0, 0.66, math.inf, -math.inf])
    y = torch.zeros(4096, dtype=dtype)
    x = torch.ones(4096, dtype=dtype)
    infinite = np.isinf(quotient)
    y[: len(quotient)] = torch.from_numpy(np.where(infinite, np.sign(quotient), quotient))
    x[: len(quotient)] = torch.from_numpy(np.where(infinite, 0.0, 1.0))
    out = torch.empty(4096, dtype=dtype, device=DEVICE)
    arctan_kernel[(1,)](y.to(DEVICE), x.to(DEVICE), out, BLOCK=4096)

    wanted = np.arctan2(y.double().numpy(), x.double().numpy())
    error = np.abs(out.cpu().double().numpy() - wanted)
    assert (error <= 4 * np.finfo(y.numpy().dtype).eps * np.abs(wanted)).all()
    assert out[len(quotient) - 2].item() == pytest.approx(math.pi / 2, rel=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("box_term", ["diou", "ciou"])
@pytest.mark.parametrize("frames", [None, 3])
def test_cost_and_loss_take_diou_and_ciou(frames: int | None, box_term: Any, kind: Any) -> None:
    counts = [4, 0, 2]
    logits, boxes, targets, matched = loss_case((2,), 6, 3, counts, 4, "cross_entropy")
    if frames is None:
        of_costs, of_losses = costs, criterion
    else:
        of_costs, of_losses = tubelet_costs, tubelet_criterion
        targets = random_tubelets(counts, 4, frames, 2, seed=5)._replace(labels=targets.labels)
        boxes = random_boxes(2, 3, 6, frames, seed=6)
    arguments = (logits.to(DEVICE), boxes.to(DEVICE), targets.to(DEVICE))
    options: Any = {"weights": WEIGHTS, "box_term": box_term, "backend": kind}
    wanted = of_costs(logits, boxes, targets, WEIGHTS, "softmax", box_term=box_term)
    torch.testing.assert_close(pairwise_cost(*arguments, **options).cpu(), wanted, rtol=1e-12, atol=1e-12)
    for matrix, queries, count in zip(
        wanted.flatten(0, 1).numpy(), match(*arguments, **options).flatten(0, 1).tolist(), counts * 2, strict=True
    ):
        best = matrix[:, :count][linear_sum_assignment(matrix[:, :count])].sum()
        assert math.fsum(matrix[query, target] for target, query in enumerate(queries[:count])) == pytest.approx(best)

    def terms(logits: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        return of_losses(logits, boxes, targets, matched, 0.1, "cross_entropy", box_term=box_term)

    check_loss((logits, boxes, targets, matched), terms, kind, box_term=box_term)


def test_ciou_is_torchvisions() -> None:
    """As far as that which torchvision adds to denominators, 1e-7, lets them agree."""
    a, b = random_boxes(200, seed=1).requires_grad_(), random_boxes(200, seed=2)
    theirs = complete_box_iou_loss(*(box_convert(boxes, "cxcywh", "xyxy") for boxes in (a, b)))
    mine = 1 - reference.box_similarity(a, b, "ciou")
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    slopes = [torch.autograd.grad(loss.sum(), a)[0] for loss in (mine, theirs)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("box_term", ["diou", "ciou"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_boxes_without_an_area_have_a_diou_and_a_ciou(box_term: Any, dtype: torch.dtype) -> None:
    """Points, lines, negative, tiny and huge sides, at the same and at other places: finite, and as the reference."""
    sizes = [(0.2, 0.3), (0.0, 0.0), (0.0, 0.3), (0.3, 0.0), (-0.2, 0.3), (-1.0, -1.0), (1e-20, 1e-20), (1e-20, 0.3)]
    sizes += [(1e10, 0.3), (2.0**-50, 2.0**-50), (2.0**-45, 2.0**-48)]
    places = [(0.5, 0.5), (0.6, 0.65), (2.0, 0.5)]
    pairs = [(place, size, other) for place in places for size in sizes for other in sizes]
    mine = torch.tensor([[*place, *size] for place, size, _ in pairs], dtype=dtype)
    goal = torch.tensor([[0.5, 0.5, *other] for *_, other in pairs], dtype=dtype)
    number = len(pairs)
    targets = Targets(torch.zeros(1, number).long(), goal[None], torch.tensor([number], dtype=torch.int32))
    arguments = on_device(torch.zeros(1, number, 2, dtype=dtype), mine[None], targets, torch.arange(number)[None])
    results = []
    for kind in KINDS:
        giou = set_loss(*arguments, box_term=box_term, backend=kind).giou  # pyright: ignore[reportArgumentType]
        results.append((giou, torch.autograd.grad(giou * number, arguments[1])[0][0]))
    (value, gradient), (their_value, their_gradient) = results
    eps = torch.finfo(dtype).eps
    assert value.isfinite()
    assert gradient.isfinite().all()
    torch.testing.assert_close(value, their_value, rtol=32 * eps, atol=0)

    # A side or an overlap of exactly 0 is a kink, at which PyTorch's own choice has changed.
    smooth = (mine > 0).all(-1) & (goal[:, 2:] > 0).all(-1)
    cost = pairwise_cost(*arguments[:3], weights=MatchWeights(0, 0, 1), box_term=box_term, backend="triton")
    other = pairwise_cost(*arguments[:3], weights=MatchWeights(0, 0, 1), box_term=box_term, backend="reference")
    torch.testing.assert_close(cost, other, rtol=32 * eps, atol=32 * eps)
    error = (gradient - their_gradient).abs().amax(-1)
    scale = their_gradient.abs().amax(-1) + (1 / mine[:, 2:].abs().clamp(min=2.0**-60)).amax(-1)
    assert (error[smooth] <= 64 * eps * scale[smooth]).all()


def test_what_is_no_box_term_is_refused() -> None:
    logits, boxes, targets, matched = loss_case((), 4, 3, [1], 1, "focal")
    message = "box_term must be one of 'giou', 'diou', 'ciou', got 'iou'"
    wrong: Any = "iou"
    with pytest.raises(ValueError, match=message):
        match(logits, boxes, targets, box_term=wrong)
    with pytest.raises(ValueError, match=message):
        pairwise_cost(logits, boxes, targets, box_term=wrong)
    with pytest.raises(ValueError, match=message):
        set_loss(logits, boxes, targets, matched, box_term=wrong)


# Class weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_classes_weigh_as_in_other_libraries(case: Any, class_loss: Any, dtype: torch.dtype, kind: Any) -> None:
    """As cross_entropy(weight=...), with no_object among them, and as factors of the columns of the focal loss."""
    classes = case[2]
    # Exact in float32, so that both dtypes are the same weights.
    weights = (torch.randint(1, 40, (classes,), generator=torch.Generator().manual_seed(4)) / 16).to(dtype)
    weights[0] = 0
    logits, boxes, targets, matched = loss_case(*case, class_loss)

    def terms(logits: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        return criterion(logits, boxes, targets, matched, 0.1, class_loss, class_weights=weights)

    drawn = (logits, boxes, targets, matched)
    # In the middle of NaN, and not contiguous: what is not a weight of a class must not be read.
    room = torch.full((2, classes + 2), math.nan, dtype=dtype, device=DEVICE).mT
    room[1:-1, 0] = weights
    check_loss(drawn, terms, kind, class_loss=class_loss, class_weights=room[1:-1, 0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("class_loss", ["varifocal", "quality_focal"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_classes_weigh_in_the_soft_losses(case: Any, class_loss: Any, kind: Any) -> None:
    weights = torch.linspace(0, 2, case[2], dtype=torch.float64)
    logits, boxes, targets, matched = loss_case(*case, "focal")

    def terms(logits: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        cls = sigmoid_class_loss(logits, boxes, targets, matched, class_loss, 0.25, 2.0, weights)
        return cls, *criterion(logits.detach(), boxes, targets, matched, 0.1, "focal")[1:]

    drawn = (logits, boxes, targets, matched)
    check_loss(drawn, terms, kind, class_loss=class_loss, class_weights=weights.to(DEVICE))


@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
def test_class_weights_get_no_gradient_and_excuse_no_wrong_label(class_loss: Any) -> None:
    logits, boxes, targets, matched = loss_case((), 5, 3, [2, 1], 2, class_loss)
    weights = torch.ones(3, device=DEVICE, requires_grad=True)
    for kind in KINDS:
        options: Any = {"class_loss": class_loss, "class_weights": weights, "backend": kind}
        arguments = on_device(logits, boxes, targets, matched)
        total = set_loss(*arguments, **options).total
        assert total.isfinite()
        total.backward()
        assert weights.grad is None
        wrong = arguments[2]._replace(labels=torch.full_like(arguments[2].labels, 3))
        got = set_loss(*arguments[:2], wrong, arguments[3], **options)
        assert got.cls.isnan()
        assert torch.autograd.grad(got.cls, arguments[0])[0].isnan().any()


@pytest.mark.parametrize("kind", KINDS)
def test_classes_that_all_weigh_nothing_give_a_loss_of_0(kind: Any) -> None:
    arguments = on_device(*loss_case((2,), 5, 3, [2, 1], 2, "cross_entropy"))
    cls = set_loss(*arguments, class_weights=torch.zeros(3, device=DEVICE), backend=kind).cls
    assert cls.item() == 0
    assert not torch.autograd.grad(cls, arguments[0])[0].any()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(2), r"class_weights must be \(3,\) floating point, got \(2,\) torch.float32"),
        (torch.ones(3).long(), r"class_weights must be \(3,\) floating point, got \(3,\) torch.int64"),
        (torch.ones(3, device="meta"), "class_weights are on meta, logits on cpu"),
    ],
)
def test_what_are_no_class_weights_is_refused(weights: Tensor, message: str) -> None:
    logits, boxes, targets, matched = loss_case((), 4, 3, [1], 1, "focal")
    with pytest.raises(ValueError, match=message):
        set_loss(logits, boxes, targets, matched, class_weights=weights)


# Soft targets


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("class_loss", "alpha", "gamma"),
    [("varifocal", 0.75, 2.0), ("varifocal", 0.3, 1.5), ("quality_focal", 0.25, 2.0), ("quality_focal", 0.25, 1.3)],
)
@pytest.mark.parametrize("frames", [None, 3])
def test_the_target_of_a_label_is_the_iou(
    frames: int | None, class_loss: Any, alpha: float, gamma: float, kind: Any
) -> None:
    counts = [4, 0, 2]
    logits, boxes, targets, matched = loss_case((2,), 6, 5, counts, 4, "focal")
    of_losses = criterion
    if frames is not None:
        of_losses = tubelet_criterion
        targets = random_tubelets(counts, 4, frames, 5, seed=5)._replace(labels=targets.labels)
        boxes = random_boxes(2, 3, 6, frames, seed=6)

    def terms(logits: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        _, l1, giou = of_losses(logits.detach(), boxes, targets, matched, 0.1, "focal")
        return sigmoid_class_loss(logits, boxes, targets, matched, class_loss, alpha, gamma), l1, giou

    drawn = (logits, boxes, targets, matched)
    check_loss(drawn, terms, kind, class_loss=class_loss, alpha=alpha, gamma=gamma)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("class_cost", "alpha", "gamma"),
    [("varifocal", 0.75, 2.0), ("varifocal", 0.3, 1.5), ("quality_focal", 0.25, 2.0), ("quality_focal", 0.25, 1.3)],
)
@pytest.mark.parametrize("frames", [None, 3])
@pytest.mark.parametrize(("queries", "counts"), [(6, [4, 0, 2]), (3, [4, 1, 0])])
def test_a_soft_cost_is_what_the_loss_changes_by(
    queries: int, counts: list[int], frames: int | None, class_cost: Any, alpha: float, gamma: float, kind: Any
) -> None:
    logits, boxes, targets, _ = loss_case((2,), queries, 5, counts, 4, "focal")
    of_boxes = costs
    if frames is not None:
        of_boxes = tubelet_costs
        targets = random_tubelets(counts, 4, frames, 5, seed=5)._replace(labels=targets.labels)
        boxes = random_boxes(2, 3, queries, frames, seed=6)
    wanted = of_boxes(logits, boxes, targets, WEIGHTS._replace(cls=0), "softmax")  # pyright: ignore[reportArgumentType]
    wanted += WEIGHTS.cls * sigmoid_class_costs(logits, boxes, targets, class_cost, alpha, gamma)
    check_cost((logits, boxes, targets), wanted, kind, class_cost=class_cost, alpha=alpha, gamma=gamma)


def check_cost(case: tuple[Any, ...], wanted: Tensor, kind: Any, **options: Any) -> None:
    """The costs are those, and the matching is the cheapest by them."""
    arguments = [part.to(DEVICE) for part in case]
    options |= {"weights": WEIGHTS, "backend": kind}
    torch.testing.assert_close(pairwise_cost(*arguments, **options).cpu(), wanted, rtol=1e-12, atol=1e-12)

    counts = case[2].counts.tolist()
    problems = wanted.flatten(0, -3).numpy()
    for index, queries in enumerate(match(*arguments, **options).flatten(0, -2).tolist()):
        matrix = problems[index][:, : counts[index % len(counts)]]
        pairs = [(query, target) for target, query in enumerate(queries) if query != -1]
        assert len({query for query, _ in pairs}) == len(pairs) == min(matrix.shape)
        best = matrix[linear_sum_assignment(matrix)].sum()
        assert math.fsum(matrix[pair] for pair in pairs) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize(("class_loss", "gamma"), [("varifocal", 0.5), ("varifocal", 2.0), ("quality_focal", 1.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_probabilities_of_0_and_1_give_finite_soft_losses(class_loss: Any, gamma: float, dtype: torch.dtype) -> None:
    rows = [[200.0, -200.0, 0.0], [-8192.0, 8192.0, 200.0], [-200.0, 8192.0, -8192.0], [0.0, 40.0, -40.0]]
    targets = random_targets([4], 4, 3, seed=3)
    targets.labels[0] = torch.tensor([0, 0, 2, 1])
    logits = torch.tensor([rows], dtype=dtype)
    boxes = random_boxes(1, 4, seed=3).to(dtype)
    # One pair of equal boxes, whose quality is 1, and one that has no area.
    targets.boxes[0, 0] = boxes[0, 0]
    boxes[0, 1, 2:] = 0
    arguments = on_device(logits, boxes, targets, torch.tensor([[0, 1, 2, 3]]))
    same_in_both(*arguments, error=16 * torch.finfo(dtype).eps, class_loss=class_loss, gamma=gamma)

    options: Any = {"class_cost": class_loss, "gamma": gamma}
    got, wanted = (pairwise_cost(*arguments[:3], **options, backend=kind) for kind in KINDS)  # pyright: ignore
    assert got.isfinite().all()
    error = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(got, wanted, rtol=error, atol=error)


def test_a_quality_focal_gamma_below_1_is_refused() -> None:
    logits, boxes, targets, matched = loss_case((), 4, 3, [1], 1, "focal")
    with pytest.raises(ValueError, match=r"gamma must be at least 1 with quality_focal, .* got 0.5"):
        set_loss(logits, boxes, targets, matched, class_loss="quality_focal", gamma=0.5)
    with pytest.raises(ValueError, match=r"gamma must be at least 1 with quality_focal, .* got 0.5"):
        match(logits, boxes, targets, class_cost="quality_focal", gamma=0.5)


# Several labels for one target

SIGMOID = ["focal", "varifocal", "quality_focal"]


def several_labels(targets: Any, classes: int, most: int, seed: int = 3) -> Any:
    """One to `most` different labels for each real target, and in the other rows what must never be looked at."""
    rng = np.random.default_rng(seed)
    labels = np.full((*targets.labels.shape, most), 10**6)
    for sample, count in enumerate(targets.counts.tolist()):
        for target in range(count):
            number = rng.integers(1, most + 1)
            labels[sample, target] = -1
            labels[sample, target, :number] = rng.permutation(classes)[:number]
    return targets._replace(labels=torch.from_numpy(labels))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("class_cost", SIGMOID)
@pytest.mark.parametrize("frames", [None, 2])
@pytest.mark.parametrize(("queries", "counts", "most"), [(6, [4, 0, 2], 3), (3, [4, 1, 0], 2)])
def test_the_cost_adds_up_over_the_labels_of_a_target(
    queries: int, counts: list[int], most: int, frames: int | None, class_cost: Any, kind: Any
) -> None:
    logits, boxes, targets, _ = loss_case((2,), queries, 5, counts, 4, "focal")
    of_boxes = costs
    if frames is not None:
        of_boxes = tubelet_costs
        targets = random_tubelets(counts, 4, frames, 5, seed=5)._replace(labels=targets.labels)
        boxes = random_boxes(2, 3, queries, frames, seed=6)
    wanted = of_boxes(logits, boxes, targets, WEIGHTS._replace(cls=0), "softmax")  # pyright: ignore[reportArgumentType]
    targets = several_labels(targets, 5, most)
    wanted += WEIGHTS.cls * sigmoid_class_costs(logits, boxes, targets, class_cost, 0.25, 2.0)
    check_cost((logits, boxes, targets), wanted, kind, class_cost=class_cost)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("class_loss", SIGMOID)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", [((2,), 12, 4, [1, 0, 3], 3), ((), 5, 65, [7, 3], 9)], ids=str)
def test_the_loss_wants_all_labels_of_a_target(case: Any, weighted: bool, class_loss: Any, kind: Any) -> None:
    logits, boxes, targets, matched = loss_case(*case, "focal")
    several = several_labels(targets, case[2], 3)
    weights = torch.linspace(0, 2, case[2], dtype=torch.float64) if weighted else None

    def terms(logits: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        cls = sigmoid_class_loss(logits, boxes, several, matched, class_loss, 0.25, 2.0, weights)
        return cls, *criterion(logits.detach(), boxes, targets, matched, 0.1, "focal")[1:]

    check_loss((logits, boxes, several, matched), terms, kind, class_loss=class_loss, class_weights=weights)


@pytest.mark.parametrize("kind", KINDS)
def test_one_label_in_a_third_dimension_is_as_without_it(kind: Any) -> None:
    logits, boxes, targets, matched = on_device(*loss_case((2,), 5, 3, [2, 1], 2, "cross_entropy"))
    one = targets._replace(labels=targets.labels[..., None])
    assert torch.equal(match(logits, boxes, one, backend=kind), match(logits, boxes, targets, backend=kind))
    assert set_loss(logits, boxes, one, matched, backend=kind) == set_loss(
        logits, boxes, targets, matched, backend=kind
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [[[0, 5], [1, -1]], [[-1, 2], [1, -1]], [[0, -2], [1, 2]]])
def test_a_label_that_no_logit_has_shows_behind_others_too(labels: list[list[int]], kind: Any) -> None:
    logits, boxes, targets, matched = on_device(*loss_case((), 4, 3, [2], 2, "focal"))
    targets = targets._replace(labels=torch.tensor([labels], device=DEVICE))
    cost = pairwise_cost(logits, boxes, targets, class_cost="focal", backend=kind)
    assert cost[..., 0].isnan().all()
    assert cost[..., 1].isfinite().all()
    cls = set_loss(logits, boxes, targets, matched, class_loss="focal", backend=kind).cls
    assert cls.isnan()
    of_query = torch.autograd.grad(cls, logits)[0][0].isnan().any(-1)
    assert of_query.nonzero().flatten().tolist() == [int(matched[0, 0])]
    with pytest.raises(ValueError, match=r"targets.labels\[0, 0, \d\] must be 0 to 2, got (5|-1|-2)"):
        match(logits, boxes, targets, class_cost="focal", check=True, backend=kind)


def test_several_labels_are_refused_where_classes_exclude_each_other() -> None:
    logits, boxes, targets, matched = loss_case((), 4, 3, [2], 2, "focal")
    targets = targets._replace(labels=torch.tensor([[[0, 1], [1, -1]]]))
    with pytest.raises(ValueError, match=r"class_cost='softmax' takes one label a target: .* \(1, 2, 2\)"):
        match(logits, boxes, targets)
    with pytest.raises(ValueError, match=r"class_loss='cross_entropy' takes one label a target: .* \(1, 2, 2\)"):
        set_loss(logits, boxes, targets, matched)
    with pytest.raises(ValueError, match=r"targets.labels must be \(1, 2\) for a batch of 1, got \(1, 2, 0\)"):
        match(logits, boxes, targets._replace(labels=targets.labels[..., :0]), class_cost="focal")
    twice = targets._replace(labels=torch.tensor([[[0, 1], [1, 1]]]))
    with pytest.raises(ValueError, match=r"targets.labels\[0, 1\] has label 1 twice"):
        match(logits, boxes, twice, class_cost="focal", check=True)
    with pytest.raises(ValueError, match=r"targets.labels must be \(B, M\) here, one label a target, got \(1, 2, 2\)"):
        denoising_queries(targets, classes=3, queries=4)


def test_several_labels_go_through_a_criterion() -> None:
    """Of Deformable DETR, and through one-to-many matching."""
    logits, boxes, targets, _ = loss_case((), 6, 4, [2, 1], 2, "focal")
    several = several_labels(targets, 4, 3)
    samples = [
        {"labels": [labels_of(several, sample, row) for row in range(count)], "boxes": several.boxes[sample, :count]}
        for sample, count in enumerate(targets.counts.tolist())
    ]
    criterion = SetCriterion(4, HungarianMatcher(2, 5, 2, focal=True), {}, focal_alpha=0.25)
    found = criterion(
        {"pred_logits": logits, "pred_boxes": boxes, "enc_outputs": {"pred_logits": logits, "pred_boxes": boxes}},
        samples,
    )
    matched = match(logits, boxes, several, class_cost="focal")
    wanted = sigmoid_class_loss(logits, boxes, several, matched, "focal", 0.25, 2.0)
    torch.testing.assert_close(found["loss_ce"], wanted)
    hits = [
        int(logits[sample, matched[sample, row]].argmax()) in labels_of(several, sample, row)
        for sample, count in enumerate(targets.counts.tolist())
        for row in range(count)
    ]
    assert found["class_error"].item() == pytest.approx(100 - 100 * sum(hits) / len(hits))

    repeated = match(logits, boxes, repeat_targets(several, 2), class_cost="focal").unflatten(-1, (2, 2))
    assert (repeated[0] >= 0).all()
    assert repeated[0].unique().numel() == 4
