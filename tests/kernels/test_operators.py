"""The operators as PyTorch sees them: schemas, fake outputs, `torch.compile`, and what a call asks of the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from actdet_kernels import MatchWeights, Targets, Tubelets, assign, gather_clips, match, set_loss
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from tests.kernels.device import DEVICE, KINDS, NEEDS_COMPILER, NEEDS_KERNELS
from tests.kernels.oracles import loss_case, random_boxes, random_clips, random_logits, random_tubelets
from tests.kernels.peak_oracles import MapShape, random_maps
from tests.kernels.suppression_oracles import random_overlaps

pytestmark = [
    *NEEDS_KERNELS,
    # PyTorch 2.7's, of its own tracing
    pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not:DeprecationWarning"),
]
OPERATORS = torch.ops.actdet_kernels
WEIGHTS = [1.3, 4.1, 0.7]
MAPS = MapShape(2, 2, 5, 6, 3, (4, 2, 3))
CHECKS = [
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_static",
    "test_aot_dispatch_dynamic",
]


def make(
    dtype: torch.dtype, tubelets: bool = False, leading: tuple[int, ...] = (2,), each_frame: bool = False
) -> tuple[Tensor, Tensor, Any, Tensor]:
    """logits, boxes, targets, matched: four queries and two samples."""
    logits, boxes, targets, matched = loss_case(leading, 4, 3, [1, 3], 3, "cross_entropy")
    if tubelets:
        drawn = random_tubelets([1, 3], 3, 2, 2, seed=1)
        targets = drawn._replace(labels=targets.labels)
        boxes = random_boxes(*leading, 2, 4, 2, seed=2)
    if each_frame:
        logits = random_logits(*leading, 2, 4, 2, 3, seed=3)
        targets = targets._replace(labels=targets.labels[:, :, None, None].repeat(1, 1, 2, 1))
    targets = targets._replace(boxes=targets.boxes.float()).to(DEVICE)
    return logits.to(DEVICE, dtype), boxes.to(DEVICE, dtype), targets, matched.to(DEVICE)


def make_clips() -> tuple[Tensor, ...]:
    """frames, indices, crops, color, frame_means."""
    pool, *rest = random_clips((4, 5, 6), 2, 3, seed=4)
    return *(value.to(DEVICE) for value in (pool, *rest)), torch.rand(4, device=DEVICE)


def flat(targets: Targets | Tubelets) -> list[Tensor | None]:
    return [*targets, *[None] * (4 - len(targets))]


def calls(dtype: torch.dtype, tubelets: bool, each_frame: bool = False) -> dict[str, tuple[Any, ...]]:
    """Arguments for every operator, the reference's where it has one."""
    logits, boxes, targets, matched = make(dtype, tubelets, each_frame=each_frame)
    wide = torch.promote_types(dtype, torch.float32)
    divisors, cotangent = torch.ones(2, 2, dtype=wide, device=DEVICE), torch.ones(2, dtype=wide, device=DEVICE)
    loss = (WEIGHTS, 0.1, "cross_entropy", 0.25, 2.0, "giou", True)
    class_weights = torch.tensor([0.5, 2.0, 0.1], device=DEVICE)
    cost = torch.rand(2, 4, 5, device=DEVICE).to(dtype)
    pool, indices, crops, color, frame_means = make_clips()
    found = {}
    for kind in KINDS:
        found[f"pairwise_cost {kind}"] = (logits, boxes, *flat(targets), WEIGHTS, "softmax", 0.25, 2.0, "giou", kind)
        found[f"match {kind}"] = (logits, boxes, *flat(targets), WEIGHTS, "softmax", 0.25, 2.0, "giou", kind)
        found[f"assign {kind}"] = (cost, targets.counts, False, kind)
        found[f"solve_assignment {kind} without counts"] = (cost.mT, None, True, kind)
        if kind != "reference":
            found[f"set_loss {kind}"] = (logits, boxes, *flat(targets), matched, None, *loss, kind)
            found[f"set_loss {kind} with class weights"] = (
                *(logits, boxes, *flat(targets), matched, class_weights, *loss, kind),
            )
            found[f"set_loss_gradient {kind}"] = (
                *(logits, boxes, *flat(targets), matched, None, divisors),
                *(cotangent, None, cotangent, None, *loss, kind),
            )
        if kind != "reference":
            found |= center_calls(dtype, kind)
        if kind == "triton":
            values = torch.rand(24, device=DEVICE)
            x = torch.randn(3, 24, 4, 5, device=DEVICE, dtype=torch.float64).to(dtype)
            x = x.contiguous(memory_format=torch.channels_last)
            statistics = torch.ones(3, 24, dtype=wide, device=DEVICE)
            for shortcut, named in ((None, ""), (x + 1, " with a shortcut")):
                found[f"batch_norm triton{named}"] = (x, values, values, shortcut, True, 1e-5, kind)
                arguments = (x, x, values, values, shortcut, statistics, True, kind)
                found[f"batch_norm_gradient triton{named}"] = arguments
        if kind != "reference":
            found |= {f"{name} {kind}": arguments for name, arguments in attention_calls(dtype, kind).items()}
            maps = [value.to(DEVICE) for value in random_maps(MAPS, dtype=dtype) if value is not None]
            found[f"center_peaks {kind}"] = (*maps, 4, True, kind)
            found[f"center_peaks {kind} without classes"] = (*maps[:3], None, 4, False, kind)
            tubes, scores = (value.to(DEVICE) for value in random_overlaps((2, 7, 3, 4), seed=0, dtype=dtype))
            found[f"suppress_overlaps {kind}"] = (tubes, scores, 0.3, 0.1, kind)
            found[f"suppress_overlaps {kind} boxes"] = (tubes[:, :, 0], scores, 0.3, 0.1, kind)
        if kind == "cpu" and DEVICE.type != "cpu":
            # It reads no frames of a GPU.
            continue
        computed = dtype if kind != "triton" or dtype != torch.float64 else torch.float32
        found[f"gather_clips {kind}"] = (pool, indices, crops, color, frame_means, computed, kind)
        found[f"gather_clips {kind} without changes"] = (pool, indices, None, None, None, computed, kind)
    return found


def attention_calls(dtype: torch.dtype, kind: str) -> dict[str, tuple[Any, ...]]:
    values = torch.randn(2, 8, 3, 4, device=DEVICE, dtype=torch.float64).to(dtype)
    points = torch.rand(2, 5, 3, 2, 2, 2, device=DEVICE, dtype=torch.float64).to(dtype)
    mask = torch.rand(2, 8, device=DEVICE) > 0.3
    d_out = torch.ones(2, 5, 12, device=DEVICE, dtype=dtype)
    given = (values, points, points[..., 0], [2, 3, 1, 2], mask)
    return {
        "deformable_attention": (*given, kind),
        "deformable_attention_gradient": (d_out, *given, True, kind),
    }


def center_calls(dtype: torch.dtype, kind: str) -> dict[str, tuple[Any, ...]]:
    """Two samples of three actors in two frames."""
    wide = torch.promote_types(dtype, torch.float32)
    targets = random_tubelets([1, 3], 3, 2, 2, seed=5, dtype=torch.float32).to(DEVICE)
    maps = [torch.rand(2, *shape, device=DEVICE).to(dtype) for shape in ((2, 5, 6), (2, 2, 5, 6), (2, 4, 5, 6))]
    classes = torch.rand(2, 2, 1, 3, device=DEVICE).to(dtype)
    divisors = torch.ones(3, dtype=wide, device=DEVICE)
    cotangent = torch.ones((), dtype=wide, device=DEVICE)
    options = ([0.3, 1.2, 0.7, 1.9], 1, "corrected", "circle", "ellipse", True, 4, 2.0, 4.0, kind)
    found = {}
    for named, given in (("", classes), (" without classes", None)):
        of_call = (*maps, given, *targets)
        found[f"center_loss {kind}{named}"] = (*of_call, *options)
        cotangents = (cotangent, None, cotangent, None, cotangent)
        found[f"center_loss_gradient {kind}{named}"] = (*of_call, divisors, *cotangents, *options)
    return found


CALLS = list(calls(torch.float32, False))
WITH_GRADIENTS = ("match", "set_loss", "set_loss_gradient")


# Operators that take targets, which may be boxes or tubelets.
OF_TARGETS = ("pairwise_cost", *WITH_GRADIENTS)
FORMS = [(name, False) for name in CALLS] + [(name, True) for name in CALLS if name.split()[0] in OF_TARGETS]


@pytest.mark.parametrize(("name", "tubelets"), FORMS)
def test_operators_keep_their_contracts(name: str, tubelets: bool) -> None:
    arguments = calls(torch.float32, tubelets)[name]
    torch.library.opcheck(getattr(OPERATORS, name.split()[0]).default, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("name", [name for name in CALLS if name.split()[0] in OF_TARGETS])
def test_operators_keep_their_contracts_with_logits_and_labels_of_each_frame(name: str) -> None:
    arguments = calls(torch.float32, True, each_frame=True)[name]
    torch.library.opcheck(getattr(OPERATORS, name.split()[0]).default, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("name", [name for name in CALLS if name.split()[0] in WITH_GRADIENTS])
def test_operators_keep_their_contracts_for_predictions_that_want_a_gradient(name: str) -> None:
    """Which `DifferentiableSetLoss` gives them: an operator has no derivative of its own."""
    logits, boxes, *rest = calls(torch.float32, False)[name]
    arguments = (logits.requires_grad_(), boxes.requires_grad_(), *rest)
    torch.library.opcheck(getattr(OPERATORS, name.split()[0]).default, arguments, test_utils=CHECKS[:3])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CALLS)
def test_fake_outputs_are_as_the_real_ones(name: str, dtype: torch.dtype) -> None:
    """In shape, dtype and strides; with predictions of other strides, too."""
    for strided in (False, True):
        arguments = calls(dtype, strided)[name]
        if strided:
            mix = [
                value.mT.contiguous().mT if torch.is_tensor(value) and value.ndim > 1 else value for value in arguments
            ]
            arguments = tuple(mix)
        real = getattr(OPERATORS, name.split()[0])(*arguments)
        with FakeTensorMode() as mode:
            fake = getattr(OPERATORS, name.split()[0])(*tree_map_only(Tensor, mode.from_tensor, arguments))
        alone = isinstance(real, Tensor)
        for one, other in zip([real] if alone else real, [fake] if alone else fake, strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            assert one.stride() == other.stride() or one.numel() == 0
            assert one.device.type == other.device.type


class Recorded(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_who_looks_sees_the_operator() -> None:
    """Where nobody does, it is computed without the dispatcher, with the same result."""
    cost = torch.rand(2, 4, 3, device=DEVICE)
    wanted = assign(cost)
    with Recorded() as recorded:
        assert torch.equal(assign(cost), wanted)
    assert "actdet_kernels.assign.default" in recorded.names

    with FakeTensorMode() as mode:
        assert isinstance(assign(mode.from_tensor(cost)), FakeTensor)
    assert "actdet_kernels.assign" in make_fx(lambda matrix: assign(matrix))(cost).code

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        assign(cost)
    events = profile.events()
    assert events is not None
    assert "actdet_kernels::assign" in {event.name for event in events}

    assert torch.equal(torch.func.vmap(assign)(cost[:, None])[:, 0], wanted)
    assert torch.equal(assign(torch.nn.Parameter(cost)), wanted)


def criterion(logits: Tensor, boxes: Tensor, targets: Any, kind: Any, per_layer: bool) -> tuple[Tensor, ...]:
    matched = match(logits, boxes, targets, backend=kind)
    return matched, *set_loss(
        logits, boxes, targets, matched, weights=MatchWeights(*WEIGHTS), per_layer=per_layer, backend=kind
    )


def check_compiled(compiled: Any, kind: Any, tubelets: bool, leading: tuple[int, ...], exact: bool = True) -> None:
    logits, boxes, targets, _ = make(torch.float32, tubelets, leading)
    results = []
    for function in (compiled, criterion):
        leaves = (logits.clone().requires_grad_(), boxes.clone().requires_grad_())
        matched, *losses = function(*leaves, targets, kind, True)
        cotangents = [torch.full_like(loss, weight) for loss, weight in zip(losses, (1.0, 0.3, -0.4, 2.0), strict=True)]
        results.append([matched, *losses, *torch.autograd.grad(losses, leaves, cotangents)])
    for one, other in zip(*results, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        # Inductor has its own order of adding up.
        error = 0 if exact else None
        torch.testing.assert_close(one, other, rtol=error, atol=error)


# Ahead of time, PyTorch traces all that it traces eagerly; inductor writes C++, which takes long.
COMPILERS = [pytest.param("eager", marks=pytest.mark.slow), "aot_eager"]
INDUCTED = [kind if kind == "triton" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


@pytest.mark.parametrize("dynamic", [None, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_whole_it_gives_what_it_gives_eagerly(kind: str, compiler: str, dynamic: bool | None) -> None:
    torch.compiler.reset()
    compiled = torch.compile(criterion, fullgraph=True, backend=compiler, dynamic=dynamic)
    for leading in ((2,), (3,)):  # another number of layers in the same graph, or in another
        check_compiled(compiled, kind, False, leading)


@pytest.mark.parametrize("kind", ["triton", "reference", "auto"])
def test_compiled_tubelets_give_what_they_give_eagerly(kind: str) -> None:
    torch.compiler.reset()
    check_compiled(torch.compile(criterion, fullgraph=True, backend="aot_eager"), kind, True, ())


def test_compiled_it_refuses_a_second_derivative_too() -> None:
    torch.compiler.reset()
    logits, boxes, targets, _ = make(torch.float32)
    leaves = (logits.requires_grad_(), boxes.requires_grad_())
    total = torch.compile(criterion, fullgraph=True, backend="aot_eager")(*leaves, targets, "triton", False)[1]
    with pytest.raises(RuntimeError, match=r"no second derivative|double backward"):
        torch.autograd.grad(total, leaves, create_graph=True)[0].sum().backward()


@NEEDS_COMPILER
@pytest.mark.parametrize("kind", INDUCTED)
def test_compiled_by_inductor_it_gives_what_it_gives_eagerly(kind: str) -> None:
    torch.compiler.reset()
    check_compiled(torch.compile(criterion, fullgraph=True), kind, False, (2,), exact=kind != "reference")


def check_compiled_clips(compiled: Any, kind: Any) -> None:
    frames, indices, *changes = make_clips()
    for length in (3, 2):  # in the same graph, or in another
        for chosen in (changes, [None, None, None]):
            for dtype in (torch.float32, torch.bfloat16):
                options = {"dtype": dtype, "backend": kind}
                one, other = (
                    call(frames, indices[:, :length], *chosen, **options) for call in (compiled, gather_clips)
                )
                assert (one.dtype, one.stride()) == (other.dtype, other.stride())
                assert torch.equal(one, other)


@pytest.mark.parametrize("dynamic", [None, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("kind", ["triton", "reference", "auto"])
def test_compiled_clips_are_the_eager_ones(kind: str, compiler: str, dynamic: bool | None) -> None:
    torch.compiler.reset()
    check_compiled_clips(torch.compile(gather_clips, fullgraph=True, backend=compiler, dynamic=dynamic), kind)


@NEEDS_COMPILER
@pytest.mark.parametrize("kind", INDUCTED)
def test_clips_compiled_by_inductor_are_the_eager_ones(kind: str) -> None:
    torch.compiler.reset()
    check_compiled_clips(torch.compile(gather_clips, fullgraph=True), kind)
