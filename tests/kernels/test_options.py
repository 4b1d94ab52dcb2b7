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
    Tubelets,
    match,
    pairwise_cost,
    reference,
    set_loss,
)
from torch import Tensor
from torchvision.ops import box_convert, complete_box_iou_loss

from tests.kernels.checks import CASES, WEIGHTS, check_cost, check_loss, on_device, same_in_all
from tests.kernels.device import DEVICE, EACH_KERNEL, HAS_TRITON, KINDS, POISONED
from tests.kernels.oracles import (
    LossCase,
    costs,
    criterion,
    loss_case,
    random_boxes,
    random_logits,
    random_targets,
    random_tubelets,
    tubelet_costs,
    tubelet_criterion,
)

pytestmark = POISONED

# Alpha and gamma of the focal cost and of the focal loss

FOCAL = [(0.25, 0.0), (0.3, 1.0), (0.9, 2.0), (0.6, 0.3), (1.0, 3.7)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("alpha", "gamma"), FOCAL)
def test_the_focal_cost_takes_alpha_and_gamma(alpha: float, gamma: float, kind: Any) -> None:
    counts = [3, 0, 7]
    targets = random_targets(counts, 7, 9, seed=8)
    logits = random_logits(2, 3, 5, 9, seed=8)
    boxes = random_boxes(2, 3, 5, seed=9)
    wanted = costs(logits, boxes, targets, WEIGHTS, "focal", alpha, gamma)
    check_cost((logits, boxes, targets), wanted, kind, class_cost="focal", alpha=alpha, gamma=gamma)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("alpha", "gamma"), FOCAL)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_focal_loss_is_torchvisions_with_every_alpha_and_gamma(
    case: LossCase, alpha: float, gamma: float, kind: Any
) -> None:
    logits, boxes, targets, matched = loss_case(*case, "focal")

    def terms(logits: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        return criterion(logits, boxes, targets, matched, 0.1, "focal", alpha, gamma)

    check_loss((logits, boxes, targets, matched), terms, kind, class_loss="focal", alpha=alpha, gamma=gamma)


@EACH_KERNEL
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 1.5, 3.7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_probabilities_of_0_and_1_give_the_limits_of_the_focal_loss(
    kernels: Any, dtype: torch.dtype, gamma: float
) -> None:
    """sigmoid(-200) is 0 in float32, and sigmoid(-8192) in float64, too."""
    rows = [[200.0, -200.0, 0.0], [-8192.0, 8192.0, 200.0], [-200.0, 8192.0, -8192.0], [0.0, 40.0, -40.0]]
    targets = random_targets([4], 4, 3, seed=3)
    targets.labels[0] = torch.tensor([0, 0, 2, 1])
    logits = torch.tensor([rows], dtype=dtype)
    arguments = on_device(logits, random_boxes(1, 4, seed=3).to(dtype), targets, torch.tensor([[0, 1, 2, 3]]))
    error = 8 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    losses, _ = same_in_all(*arguments, error=max(error, torch.finfo(dtype).eps / 2), class_loss="focal", gamma=gamma)
    # Where p is 0 or 1, (1 - p)^gamma is 1 or 0: for a gamma above 0, what is right of each class costs nothing.
    wrong = 0.25 * (8192.0 + 8192.0) + 0.75 * (8192.0 + 200 + 8192.0)
    unsure = (0.75 + 0.75) * 0.5**gamma * math.log(2)
    assert losses.cls.item() == pytest.approx((wrong + unsure) / 4, rel=1e-4)

    cost = pairwise_cost(*arguments[:3], class_cost="focal", gamma=gamma, backend=kernels)
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
    launch_one: Any = arctan_kernel[(1,)]
    launch_one(y.to(DEVICE), x.to(DEVICE), out, BLOCK=4096)

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
        wanted = costs(logits, boxes, targets, WEIGHTS, "softmax", box_term=box_term)
    else:
        targets = random_tubelets(counts, 4, frames, 2, seed=5)._replace(labels=targets.labels)
        boxes = random_boxes(2, 3, 6, frames, seed=6)
        wanted = tubelet_costs(logits, boxes, targets, WEIGHTS, "softmax", box_term=box_term)
    check_cost((logits, boxes, targets), wanted, kind, box_term=box_term)

    def terms(logits: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        if isinstance(targets, Tubelets):
            return tubelet_criterion(logits, boxes, targets, matched, 0.1, "cross_entropy", box_term=box_term)
        return criterion(logits, boxes, targets, matched, 0.1, "cross_entropy", box_term=box_term)

    check_loss((logits, boxes, targets, matched), terms, kind, box_term=box_term)


def test_ciou_is_torchvisions() -> None:
    """As far as that which torchvision adds to denominators, 1e-7, lets them agree."""
    a, b = random_boxes(200, seed=1).requires_grad_(), random_boxes(200, seed=2)
    first, second = (box_convert(boxes, "cxcywh", "xyxy") for boxes in (a, b))
    theirs = complete_box_iou_loss(first, second)
    mine = 1 - reference.box_similarity(a, b, "ciou")
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    slopes = [torch.autograd.grad(loss.sum(), a)[0] for loss in (mine, theirs)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-4)


@EACH_KERNEL
@pytest.mark.parametrize("box_term", [pytest.param("diou", marks=pytest.mark.slow), "ciou"])
@pytest.mark.parametrize("dtype", [pytest.param(torch.float64, marks=pytest.mark.slow), torch.float32])
def test_boxes_without_an_area_have_a_diou_and_a_ciou(kernels: Any, box_term: Any, dtype: torch.dtype) -> None:
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
    for kind in (kernels, "reference"):
        giou = set_loss(*arguments, box_term=box_term, backend=kind).giou
        results.append((giou, torch.autograd.grad(giou * number, arguments[1])[0][0]))
    (value, gradient), (their_value, their_gradient) = results
    eps = torch.finfo(dtype).eps
    assert value.isfinite()
    assert gradient.isfinite().all()
    torch.testing.assert_close(value, their_value, rtol=32 * eps, atol=0)

    # A side or an overlap of exactly 0 is a kink, at which PyTorch's own choice has changed.
    smooth = (mine > 0).all(-1) & (goal[:, 2:] > 0).all(-1)
    cost = pairwise_cost(*arguments[:3], weights=MatchWeights(0, 0, 1), box_term=box_term, backend=kernels)
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
def test_classes_weigh_as_in_other_libraries(case: LossCase, class_loss: Any, dtype: torch.dtype, kind: Any) -> None:
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
