"""What else a cost and a loss can be than the default: both implementations against other libraries in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from actdet_kernels import MatchWeights, match, pairwise_cost, set_loss
from device import DEVICE, POISONED
from oracles import costs, criterion, loss_case, random_boxes, random_logits, random_targets
from scipy.optimize import linear_sum_assignment
from torch import Tensor

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
