"""Deformable attention and its gradient, against sums over all pixels in float64, and against Hugging Face's."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from actdet_kernels import deformable_attention
from actdet_kernels.backend import Backend
from torch import Tensor

from tests.kernels.device import DEVICE, HAS_CPP, HAS_TRITON, KERNELS, KINDS, NEEDS_TRITON
from tests.kernels.oracles import Sizes, sum_over_pixels

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:Conversion of an array:DeprecationWarning")
POISON = pytest.mark.usefixtures("allocated")
EACH_KIND = pytest.mark.parametrize("kind", KINDS)
EACH_KERNEL = pytest.mark.parametrize("kind", KERNELS)


class Shape(NamedTuple):
    """Samples, queries, heads, features, the levels' heights and widths, and the points of a level."""

    batch: int
    queries: int
    heads: int
    features: int
    sizes: Sizes
    points: int


# Those of a tubelet's decoder at a small size, and ugly ones.
SHAPES = [
    Shape(2, 5, 2, 32, [(14, 14), (7, 7), (4, 4)], 4),
    Shape(2, 7, 2, 16, [(3, 5)] * 3, 2),
    Shape(1, 1, 1, 1, [(1, 1)], 1),
    Shape(1, 33, 2, 5, [(4, 1), (1, 6)], 3),
    Shape(1, 3, 1, 70, [(2, 3)], 5),
]


class Case:
    """Inputs of a shape, a gradient of the result, and what both lead to in float64."""

    def __init__(
        self, shape: Shape, dtype: torch.dtype = torch.float64, *, masked: bool = False, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        batch, queries, heads, features, self.sizes, points = shape
        pixels = sum(height * width for height, width in self.sizes)
        each = (batch, queries, heads, len(self.sizes), points)

        def random(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator, dtype=torch.float64)

        self.values = random(batch, pixels, heads, features).to(dtype)
        # A third of the points is outside of the picture, or at its border.
        self.points = (0.5 + 0.4 * random(*each, 2)).to(dtype)
        # Where a rounded point meets the center of a pixel, there are two derivatives.
        for level, (height, width) in enumerate(self.sizes):
            part = self.points[:, :, :, level]
            places = part.double() * torch.tensor([width, height]) - 0.5
            part[places == places.round()] += 0.04
        self.weights = random(*each).flatten(-2).softmax(-1).view(each).to(dtype)
        self.mask = torch.rand(batch, pixels, generator=generator) > 0.3 if masked else None
        self.d_out = random(batch, queries, heads * features).to(dtype)

    def inputs(self, dtype: torch.dtype | None = None, device: torch.device = DEVICE) -> list[Tensor]:
        """Values, points and weights, which want gradients."""
        given = (self.values, self.points, self.weights)
        return [value.detach().to(device, dtype or value.dtype, copy=True).requires_grad_() for value in given]

    def exact(self) -> list[Tensor]:
        """The result, and the gradients of values, points and weights."""
        inputs = self.inputs(torch.float64, torch.device("cpu"))
        out = sum_over_pixels(*inputs, sizes=self.sizes, mask=self.mask)
        return [out.detach(), *torch.autograd.grad(out, inputs, self.d_out.double())]

    def ours(self, kind: Backend, deterministic: bool = True) -> list[Tensor]:
        inputs = self.inputs()
        mask = None if self.mask is None else self.mask.to(DEVICE)
        out = deformable_attention(*inputs, sizes=self.sizes, mask=mask, deterministic=deterministic, backend=kind)
        found = [out.detach(), *torch.autograd.grad(out, inputs, self.d_out.to(DEVICE))]
        return [value.cpu() for value in found]


def check(case: Case, kind: Backend, error: float, deterministic: bool = True) -> None:
    """Within rounding to the inputs' dtypes, and `error` of what is largest."""
    found = case.ours(kind, deterministic)
    stored = torch.finfo(case.values.dtype).eps
    for mine, true, like in zip(found, case.exact(), (case.d_out, case.values, case.points, case.weights), strict=True):
        assert mine.shape == like.shape
        assert mine.dtype == like.dtype
        scale = true.abs().max().clamp(min=1).item()
        torch.testing.assert_close(mine.double(), true, rtol=stored, atol=error * scale)


@POISON
@EACH_KIND
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_sum_over_all_pixels(shape: Shape, masked: bool, kind: Backend) -> None:
    check(Case(shape, masked=masked), kind, 1e-13)


@POISON
@EACH_KIND
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, deterministic: bool, kind: Backend) -> None:
    check(Case(Shape(2, 9, 2, 16, [(5, 7), (2, 3)], 3), dtype, masked=True), kind, 3e-6, deterministic)


@EACH_KIND
def test_dtypes_may_differ(kind: Backend) -> None:
    """Features in half precision, read at places that are not rounded to it."""
    case = Case(Shape(2, 9, 2, 16, [(50, 70)], 3), torch.float32)
    case.values = case.values.bfloat16()
    case.d_out = case.d_out.bfloat16()
    for mine, true, error in zip(case.ours(kind), case.exact(), (8e-3, 8e-3, 1e-5, 1e-5), strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=error, atol=error * true.abs().max().item())


def test_it_is_hugging_faces() -> None:
    attention = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")
    module = attention.MultiScaleDeformableAttention()
    case = Case(SHAPES[0])
    inputs = case.inputs(device=torch.device("cpu"))
    sizes = torch.tensor(case.sizes)
    starts = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])
    theirs = module(inputs[0], sizes, case.sizes, starts, inputs[1], inputs[2], 64)
    wanted = [theirs.detach(), *torch.autograd.grad(theirs, inputs, case.d_out)]
    for kind in KINDS:
        for mine, true in zip(case.ours(kind), wanted, strict=True):
            torch.testing.assert_close(mine, true, rtol=1e-11, atol=1e-11)


@EACH_KIND
def test_queries_that_read_all_frames_add_up_what_they_read_in_each(kind: Backend) -> None:
    """As the documentation says it: frames as levels."""
    frames, queries, heads, features = 3, 5, 2, 4
    sizes = [(3, 4), (2, 2)]
    video = Case(Shape(2 * frames, queries, heads, features, sizes, 2))
    values, points, weights = video.inputs()
    each = deformable_attention(values, points, weights, sizes, backend=kind)

    pixels = values.shape[1]
    together = [
        values.view(2, frames * pixels, heads, features),
        points.unflatten(0, (2, frames)).permute(0, 2, 3, 1, 4, 5, 6).flatten(3, 4),
        weights.unflatten(0, (2, frames)).permute(0, 2, 3, 1, 4, 5).flatten(3, 4),
    ]
    all_frames = deformable_attention(*together, sizes=sizes * frames, backend=kind)
    torch.testing.assert_close(all_frames, each.unflatten(0, (2, frames)).sum(1))


@EACH_KIND
def test_what_a_mask_hides_may_be_anything(kind: Backend) -> None:
    case = Case(SHAPES[1], masked=True)
    assert case.mask is not None
    wanted = case.ours(kind)
    case.values[~case.mask] = torch.nan
    found = case.ours(kind)
    for mine, true in zip(found, wanted, strict=True):
        assert torch.equal(mine, true)
    assert not found[1][~case.mask].any()


@EACH_KIND
@pytest.mark.parametrize(
    "place", [torch.nan, torch.inf, -torch.inf, *(pytest.param(far, marks=pytest.mark.slow) for far in (1e30, -1e30))]
)
def test_a_point_that_is_nowhere_is_outside(place: float, kind: Backend) -> None:
    case = Case(SHAPES[1], torch.float32)
    case.points[0, 2, :, 1] = -5.0
    wanted = case.ours(kind)
    case.points[0, 2, 0, 1, 0, 0] = place
    case.points[0, 2, 1, 1, 1, 1] = place
    found = case.ours(kind)
    for mine, true in zip(found, wanted, strict=True):
        # On a GPU the reference adds up in any order.
        torch.testing.assert_close(mine, true, rtol=0, atol=0 if kind != "reference" else 1e-5)
    assert not found[2][0, 2, :, 1].any()


@EACH_KIND
def test_pixels_beside_the_border_count_as_far_as_they_reach(kind: Backend) -> None:
    """At the very centers, and half a pixel outside of the picture."""
    values = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64, device=DEVICE).view(1, 4, 1, 1)
    places = [(0.25, 0.25), (0.75, 0.25), (0.5, 0.5), (0.0, 0.25), (1.0, 1.0), (-0.25, 0.5), (1.25, 0.5), (-0.24, 0.25)]
    points = torch.tensor(places, dtype=torch.float64, device=DEVICE).view(1, -1, 1, 1, 1, 2)
    weights = torch.ones(1, len(places), 1, 1, 1, dtype=torch.float64, device=DEVICE)
    out = deformable_attention(values, points, weights, [(2, 2)], backend=kind)
    torch.testing.assert_close(
        out.flatten().cpu(), torch.tensor([1.0, 2.0, 2.5, 0.5, 1.0, 0.0, 0.0, 0.02], dtype=torch.float64)
    )


@NEEDS_TRITON
def test_the_order_of_queries_moves_no_bit() -> None:
    """Nor does the order in which a GPU runs programs: what is added up are integers."""
    case = Case(Shape(1, 200, 1, 4, [(2, 2)], 4), torch.float32)
    wanted = case.ours("triton")
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    case.points, case.weights, case.d_out = (value[:, order] for value in (case.points, case.weights, case.d_out))
    found = case.ours("triton")
    assert torch.equal(found[0], wanted[0][:, order])
    assert torch.equal(found[1], wanted[1])
    in_any_order = case.ours("triton", deterministic=False)[1]
    torch.testing.assert_close(in_any_order, wanted[1], rtol=1e-4, atol=1e-5)


@EACH_KERNEL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "scale", [1e-35, *(pytest.param(each, marks=pytest.mark.slow) for each in (1e-20, 1e-5, 1e5)), 1e30]
)
def test_gradients_of_any_size_are_as_exact(scale: float, dtype: torch.dtype, kind: Backend) -> None:
    """The largest is; those of 1e-35 are to what is left of float32's range."""
    case = Case(SHAPES[1], dtype)
    case.d_out *= scale
    found = case.ours(kind)[1]
    wanted = case.exact()[1]
    error = (2e-6 if dtype == torch.float32 else 1e-14) * wanted.abs().max().item() + 1e-37
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=error)


@EACH_KERNEL
@pytest.mark.parametrize("flaw", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_gives_none_that_is(flaw: float, kind: Backend) -> None:
    """Of the features that it reaches at least. Triton's integers cannot tell these from others."""
    case = Case(SHAPES[1], torch.float32)
    case.points[:] = 0.5
    case.d_out[0, 3, 5] = flaw
    d_values = case.ours(kind)[1]
    assert not d_values[0, :, 0, 5].isfinite().all()
    if kind == "triton":
        assert d_values.isnan().all()
    else:
        assert d_values[0, :, 0, :5].isfinite().all()


@EACH_KIND
@pytest.mark.parametrize("empty", ["batch", "queries", "points"])
def test_nothing_to_read_is_zero(empty: str, kind: Backend) -> None:
    case = Case(SHAPES[1]._replace(**{empty: 0}))
    for mine, true in zip(case.ours(kind), case.exact(), strict=True):
        torch.testing.assert_close(mine, true)


@EACH_KERNEL
def test_inputs_may_lie_in_memory_in_any_way(kind: Backend) -> None:
    case = Case(SHAPES[1])
    wanted = case.exact()
    inputs = [value.detach() for value in case.inputs()]
    strange = [value.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for value in inputs]
    assert not any(value.is_contiguous() for value in strange)
    out = deformable_attention(*strange, sizes=case.sizes, backend=kind)
    d_out = case.d_out.to(DEVICE).transpose(1, 2).contiguous().transpose(1, 2)
    for mine, true in zip([out, *torch.autograd.grad(out, strange, d_out)], wanted, strict=True):
        torch.testing.assert_close(mine.detach().cpu(), true, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not HAS_CPP, reason="the C++ kernels were not built")
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_move_no_bit(threads: int) -> None:
    case = Case(Shape(3, 40, 3, 8, [(9, 9)], 4), torch.float32)
    before = torch.get_num_threads()
    wanted = case.ours("cpu")
    torch.set_num_threads(threads)
    try:
        for mine, true in zip(case.ours("cpu"), wanted, strict=True):
            assert torch.equal(mine, true)
    finally:
        torch.set_num_threads(before)


@EACH_KERNEL
def test_compiled_whole_it_gives_what_it_gives_eagerly(kind: Backend) -> None:
    case = Case(SHAPES[1])
    wanted = case.ours(kind)
    torch.compiler.reset()
    compiled = torch.compile(deformable_attention, fullgraph=True, backend="aot_eager")
    inputs = case.inputs()
    out = compiled(*inputs, sizes=case.sizes, backend=kind)
    for mine, true in zip([out, *torch.autograd.grad(out, inputs, case.d_out.to(DEVICE))], wanted, strict=True):
        torch.testing.assert_close(mine.detach().cpu(), true)


def test_sizes_may_be_numpys() -> None:
    case = Case(SHAPES[1])
    out = deformable_attention(*case.inputs(), sizes=[tuple(size) for size in np.array(case.sizes)])
    torch.testing.assert_close(out.detach().cpu(), case.exact()[0])


@EACH_KERNEL
def test_the_kernels_have_no_second_derivative(kind: Backend) -> None:
    case = Case(SHAPES[1])
    inputs = case.inputs()
    out = deformable_attention(*inputs, sizes=case.sizes, backend=kind)
    (d_values,) = torch.autograd.grad(out.square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="deformable_attention has no second derivative with the kernels"):
        torch.autograd.grad(d_values.sum(), inputs)


def wrong(**changes: Any) -> dict[str, Any]:
    given = {
        "values": torch.zeros(2, 6, 3, 4),
        "points": torch.zeros(2, 5, 3, 1, 2, 2),
        "weights": torch.zeros(2, 5, 3, 1, 2),
        "sizes": [(2, 3)],
        "mask": None,
    }
    return given | changes


WRONG: list[tuple[dict[str, Any], str]] = [
    (wrong(sizes=[(2, 4)]), r"values have 6 pixels, but levels of \[\(2, 4\)\] have 8"),
    (wrong(sizes=[(2.0, 3)]), r"sizes must be \(height, width\) of every level, two positive integers, got \(2.0, 3\)"),
    (wrong(sizes=[(6, 1, 1)]), r"sizes must be .*, got \(6, 1, 1\)"),
    (wrong(sizes=[(-2, -3)]), r"sizes must be .*, got \(-2, -3\)"),
    (wrong(sizes=[]), "sizes must have at least one level"),
    (wrong(values=torch.zeros(2, 6, 12)), r"values must be \(B, S, H, D\) and points \(B, Q, H, L, P, 2\), got"),
    (wrong(points=torch.zeros(2, 5, 3, 2, 2, 2)), r"points must be \(2, 5, 3, 1, 2, 2\), got \(2, 5, 3, 2, 2, 2\)"),
    (wrong(weights=torch.zeros(2, 5, 3, 1, 3)), r"weights must be \(2, 5, 3, 1, 2\), got \(2, 5, 3, 1, 3\)"),
    (wrong(values=torch.zeros(2, 6, 3, 4).int()), "values must be floating point, got torch.int32"),
    (wrong(weights=torch.zeros(2, 5, 3, 1, 2, device="meta")), "weights are on meta, values on cpu"),
    (wrong(mask=torch.zeros(2, 6)), r"mask must be \(2, 6\) bool, got \(2, 6\) torch.float32"),
    (wrong(mask=torch.zeros(2, 5).bool()), r"mask must be \(2, 6\) bool, got \(2, 5\) torch.bool"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deformable_attention(**arguments)


@pytest.mark.skipif(not HAS_TRITON, reason="there is no Triton for this platform")
def test_a_sample_beyond_32_bits_is_left_to_others() -> None:
    values = torch.empty(1, 2**26, 8, 8, device="meta")
    points = torch.empty(1, 1, 8, 1, 1, 2, device="meta")
    with pytest.raises(RuntimeError, match="a sample has 4294967296 values, more than 2147483647"):
        deformable_attention(values, points, points[..., 0], [(2**13, 2**13)], backend="triton")
