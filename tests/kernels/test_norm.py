"""Batch normalization with the sum and the ReLU after it, against PyTorch's own in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from actdet_kernels import batch_norm
from actdet_kernels.backend import Backend
from torch import Tensor

from tests.kernels.device import DEVICE, NEEDS_KERNELS

pytestmark = NEEDS_KERNELS
POISON = pytest.mark.usefixtures("allocated")

# Samples, channels, frames and sides: those of layers at small sizes, and ugly ones.
SHAPES = [(2, 48, 3, 4, 5), (1, 144, 2, 9, 8), (3, 7, 1, 1, 2), (5, 65, 13), (130, 64), (2, 1, 1, 1, 1)]
EPS = 1e-5

# What is compared: the output, the running statistics after it, the gradients; the last one is of a shortcut.
NAMES = ("y", "mean", "var", "d_x", "d_weight", "d_bias", "d_shortcut")
OF_FEATURES = ("y", "d_x", "d_shortcut")


def features(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Channels-last, of means and deviations that differ from channel to channel."""
    generator = torch.Generator().manual_seed(seed)
    channels = (1, shape[1], *[1] * (len(shape) - 2))
    mean, deviation = (torch.randn(channels, generator=generator, dtype=torch.float64) for _ in range(2))
    x = mean + deviation * torch.randn(shape, generator=generator, dtype=torch.float64)
    return x.movedim(1, -1).contiguous().movedim(-1, 1).to(dtype)


class Case:
    """An input with all that belongs to it, and what PyTorch says of it in float64."""

    def __init__(
        self, x: Tensor, seed: int = 0, relu: bool = False, momentum: float = 0.1, with_shortcut: bool = False
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        channels, parameters = x.shape[1], torch.promote_types(x.dtype, torch.float32)
        self.x, self.relu, self.momentum = x, relu, momentum
        self.weight, self.bias, self.mean = (
            torch.randn(channels, generator=generator).to(parameters) for _ in range(3)
        )
        self.var = torch.rand(channels, generator=generator).to(parameters)
        self.d_y = torch.randn(x.shape, generator=generator).to(x.dtype)
        self.shortcut = features(tuple(x.shape), x.dtype, seed + 100) if with_shortcut else None

    def leaves(self) -> list[Tensor]:
        """What has a gradient: x, weight, bias and, if there is one, the shortcut."""
        given = [self.x, self.weight, self.bias] + ([] if self.shortcut is None else [self.shortcut])
        return [value.detach().to(DEVICE, copy=True).requires_grad_() for value in given]

    def exact(self) -> list[Tensor]:
        """y, the running statistics after it, and the gradients."""
        leaves = [value.detach().cpu().double().requires_grad_() for value in self.leaves()]
        mean, var = self.mean.double(), self.var.double()
        y = F.batch_norm(leaves[0], mean, var, leaves[1], leaves[2], True, self.momentum, EPS)
        for shortcut in leaves[3:]:
            y = y + shortcut
        y = F.relu(y) if self.relu else y
        return [y.detach(), mean, var, *torch.autograd.grad(y, leaves, self.d_y.double())]

    def ours(self, backend: Any) -> list[Tensor]:
        leaves = self.leaves()
        mean, var = self.mean.to(DEVICE, copy=True), self.var.to(DEVICE, copy=True)
        options: Any = {"relu": self.relu, "momentum": self.momentum, "eps": EPS, "backend": backend}
        shortcut = leaves[3] if leaves[3:] else None
        y = batch_norm(*leaves[:3], running_mean=mean, running_var=var, shortcut=shortcut, **options)
        assert backend != "triton" or y.stride() == leaves[0].stride()
        found = [y.detach(), mean, var, *torch.autograd.grad(y, leaves, self.d_y.to(DEVICE))]
        return [value.cpu() for value in found]


def check(case: Case, backend: Any = "triton", error: float | None = None) -> None:
    """Within rounding of the results' types and of what is largest. No y lies so near 0 that rounding decides."""
    found, wanted = case.ours(backend), case.exact()
    error = error or {torch.float64: 1e-11}.get(case.x.dtype, 1e-5)
    stored = torch.finfo(case.x.dtype).eps
    assert torch.equal(wanted[0] == 0, found[0] == 0)
    for name, mine, true in zip(NAMES[: len(wanted)], found, wanted, strict=True):
        rounding = stored if name in OF_FEATURES else 0.0
        scale = true.abs().max().clamp(min=1.0).item()
        torch.testing.assert_close(mine.double(), true, rtol=rounding, atol=error * scale, equal_nan=True, msg=name)


@POISON
@pytest.mark.parametrize("with_shortcut", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_pytorchs_in_float64(shape: tuple[int, ...], dtype: torch.dtype, relu: bool, with_shortcut: bool) -> None:
    check(Case(features(shape, dtype, 1), 1, relu, with_shortcut=with_shortcut))


@POISON
@pytest.mark.parametrize("with_shortcut", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, relu: bool, with_shortcut: bool) -> None:
    check(Case(features((2, 48, 3, 4, 5), dtype, 2), 2, relu, with_shortcut=with_shortcut))


@POISON
@pytest.mark.parametrize("programs", [1, 2, 5])
@pytest.mark.parametrize("rows", [2, 63, 64, 65, 700])
def test_any_number_of_programs_adds_up_the_same_rows(programs: int, rows: int, monkeypatch: Any) -> None:
    norm = pytest.importorskip("actdet_kernels.triton.norm")
    monkeypatch.setattr(norm, "PROGRAMS", programs)
    assert norm.shares_of(rows, 24)[0] <= programs
    check(Case(features((rows, 24), torch.float32, rows), 3, relu=True))


@pytest.mark.parametrize("rows", [1, 64, 65, 10_000, 1_605_632])
@pytest.mark.parametrize("channels", [1, 48, 144, 1152, 100_000])
def test_the_shares_of_the_programs_hold_every_row_once(rows: int, channels: int) -> None:
    norm = pytest.importorskip("actdet_kernels.triton.norm")
    programs, each = norm.shares_of(rows, channels)
    assert (programs - 1) * each < rows <= programs * each
    assert each % norm.BLOCK_R == 0
    assert programs * norm.tile_count(channels, norm.BLOCK_C) <= max(norm.PROGRAMS, norm.tile_count(channels, 64))


def test_a_large_mean_swallows_no_small_variance() -> None:
    """It errs no more than PyTorch does in float32, up to the rounding of the mean."""
    case = Case((1000 + features((40, 24, 5), torch.float64, 4)).float(), 4)
    wanted = case.exact()
    errors = [
        [(mine.double() - true).abs().max().item() for mine, true in zip(case.ours(backend), wanted, strict=True)]
        for backend in ("triton", "reference")
    ]
    for mine, theirs in zip(*errors, strict=True):
        assert mine <= 2 * theirs + 1e-3


def test_channels_that_are_constant_have_no_variance() -> None:
    """Such are those that pad a width, whose weights are zero."""
    x = features((6, 16, 3), torch.float32, 5)
    x[:, ::2] = 0
    x[:, 1] = 3.7
    case = Case(x, 5, relu=True)
    case.weight[::2] = case.bias[::2] = 0
    found = case.ours("triton")
    assert not found[0][:, ::2].any()
    assert not found[3][:, ::2].any()
    assert all(value.isfinite().all() for value in found)


def test_what_is_not_finite_stays_in_its_channel() -> None:
    x = features((6, 16, 3), torch.float32, 6)
    clean = Case(x.clone(), 6, relu=True).ours("triton")
    x[2, 3, 1] = torch.nan
    x[4, 5, 2] = torch.inf
    found = Case(x, 6, relu=True).ours("triton")
    hit = torch.zeros(16, dtype=torch.bool)
    hit[[3, 5]] = True
    for name, mine, wanted in zip(NAMES[: len(clean)], found, clean, strict=True):
        if mine.ndim > 1:
            mine, wanted = mine.movedim(1, 0), wanted.movedim(1, 0)
        assert torch.equal(mine[~hit], wanted[~hit])
        # The sum of what passes the ReLU is finite: NaN passes, and what passes is not it.
        assert name == "d_bias" or not mine[hit].isfinite().any()


def test_two_runs_give_the_same_bits() -> None:
    case = Case(features((30, 80, 9), torch.bfloat16, 7), 7, relu=True, with_shortcut=True)
    for mine, again in zip(case.ours("triton"), case.ours("triton"), strict=True):
        assert torch.equal(mine, again)


def test_a_gradient_of_another_layout_is_taken() -> None:
    case = Case(features((2, 24, 3, 5), torch.float32, 8), 8)
    wanted = case.exact()
    leaves = [value.to(DEVICE).requires_grad_() for value in (case.x, case.weight, case.bias)]
    y = batch_norm(*leaves, eps=EPS, backend="triton")
    for d_y in (case.d_y.contiguous(), torch.ones(()).expand(case.x.shape)):
        exact = wanted[3:] if d_y.is_contiguous() else None
        found = torch.autograd.grad(y, leaves, d_y.to(DEVICE), retain_graph=True)
        if exact is not None:
            for mine, true in zip(found, exact, strict=True):
                torch.testing.assert_close(mine.cpu().double(), true, rtol=0, atol=1e-4)
        else:
            torch.testing.assert_close(found[2].cpu(), torch.full((24,), 30.0))


def test_a_shortcut_of_another_layout_is_taken() -> None:
    case = Case(features((2, 24, 3, 5), torch.float32, 14), 14, relu=True, with_shortcut=True)
    assert case.shortcut is not None
    case.shortcut = case.shortcut.contiguous()
    check(case)


def test_a_shortcut_that_wants_no_gradient_gets_none() -> None:
    case = Case(features((2, 24, 3, 5), torch.float32, 15), 15, relu=True, with_shortcut=True)
    *leaves, shortcut = case.leaves()
    y = batch_norm(*leaves, shortcut=shortcut.detach(), relu=True, eps=EPS, backend="triton")
    found = torch.autograd.grad(y, leaves, case.d_y.to(DEVICE))
    for mine, true in zip(found, case.exact()[3:6], strict=True):
        torch.testing.assert_close(mine.cpu().double(), true, rtol=0, atol=1e-4)


def test_features_may_be_their_own_shortcut() -> None:
    case = Case(features((2, 24, 3, 5), torch.float32, 16), 16, relu=True)
    gradients = []
    backends: list[tuple[Backend, torch.dtype]] = [("triton", torch.float32), ("reference", torch.float64)]
    for backend, dtype in backends:
        leaves = [value.detach().to(dtype).requires_grad_() for value in case.leaves()]
        y = batch_norm(*leaves, shortcut=leaves[0], relu=True, eps=EPS, backend=backend)
        gradients.append(torch.autograd.grad(y, leaves, case.d_y.to(DEVICE, dtype)))
    for mine, true in zip(*gradients, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=0, atol=1e-4)


@pytest.mark.parametrize("relu", [False, True])
def test_a_sum_may_be_added_in_place(relu: bool) -> None:
    """Over a view of it, too."""
    case = Case(features((2, 24, 3, 5), torch.float32, 12), 12, relu)
    leaves = [value.to(DEVICE).requires_grad_() for value in (case.x, case.weight, case.bias)]
    y = batch_norm(*leaves, relu=relu, eps=EPS, backend="triton").unflatten(0, (1, 2)).transpose(1, 2)
    y += 1
    found = torch.autograd.grad(y.transpose(1, 2).flatten(0, 1), leaves, case.d_y.to(DEVICE))
    wanted = case.exact()
    torch.testing.assert_close(y[0].transpose(0, 1).cpu().double(), wanted[0] + 1, rtol=0, atol=1e-5)
    for mine, true in zip(found, wanted[3:], strict=True):
        torch.testing.assert_close(mine.cpu().double(), true, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("with_shortcut", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_the_reference_is_pytorchs(relu: bool, with_shortcut: bool) -> None:
    x = features((2, 48, 3, 4, 5), torch.float32, 9)
    check(Case(x, 9, relu, with_shortcut=with_shortcut), "reference")
    check(Case(x.contiguous(), 9, relu, with_shortcut=with_shortcut), "auto")


def test_without_running_statistics_nothing_is_moved() -> None:
    case = Case(features((4, 8, 3), torch.float32, 10), 10)
    y = batch_norm(case.x.to(DEVICE), case.weight.to(DEVICE), case.bias.to(DEVICE), backend="triton")
    torch.testing.assert_close(y.cpu().double(), case.exact()[0], rtol=0, atol=1e-5)


def test_the_kernels_have_no_second_derivative() -> None:
    case = Case(features((4, 8, 3), torch.float32, 11), 11)
    leaves = [value.to(DEVICE).requires_grad_() for value in (case.x, case.weight, case.bias)]
    y = batch_norm(*leaves, backend="triton")
    (d_x,) = torch.autograd.grad(y.square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="batch_norm has no second derivative with the kernels"):
        torch.autograd.grad(d_x.sum(), leaves)


VALUES = torch.zeros(3)
WRONG: list[tuple[tuple[Any, ...], str]] = [
    ((torch.zeros(4), VALUES, VALUES), r"x must be \(B, C, ...\) floating point, got \(4,\) torch.float32"),
    ((torch.zeros(4, 3).int(), VALUES, VALUES), r"x must be .* floating point, got \(4, 3\) torch.int32"),
    ((torch.zeros(1, 3), VALUES, VALUES), r"x must have more than one value per channel, got \(1, 3\)"),
    ((torch.zeros(4, 3), torch.zeros(2), VALUES), r"weight must be \(3,\) floating point, got \(2,\)"),
    ((torch.zeros(4, 3), VALUES, VALUES.int()), r"bias must be \(3,\) floating point, got \(3,\) torch.int32"),
    ((torch.zeros(4, 3), VALUES, VALUES, VALUES), "running_mean and running_var belong together"),
    ((torch.zeros(4, 3), VALUES.to("meta"), VALUES), "weight is on meta, x on cpu"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_arguments_are_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batch_norm(*arguments)


def test_the_kernels_say_why_they_cannot() -> None:
    x = torch.zeros(2, 3, 4, 4, device=DEVICE)
    values = torch.zeros(3, device=DEVICE)
    for shortcut in (x[:1], x.double(), x.to("meta")):
        with pytest.raises(
            ValueError, match=r"shortcut (must be \(2, 3, 4, 4\) torch.float32, as x is, got|is on meta)"
        ):
            batch_norm(x, values, values, shortcut=shortcut)
    with pytest.raises(RuntimeError, match="its channels do not lie side by side in memory"):
        batch_norm(x, values, values, backend="triton")
    with pytest.raises(RuntimeError, match="PyTorch's own batch norm is as fast on a CPU"):
        batch_norm(x, values, values, backend="cpu")
