"""What the criterion asks of a device: few launches for all layers, nothing read back, no shape that data decide."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from actdet_kernels import CenterMaps, MatchWeights, Targets, Tubelets, frame_levels, gather_clips, match, set_loss
from actdet_kernels.options import CenterOptions, CostOptions, LossOptions
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.device import DEVICE, NEEDS_KERNELS
from tests.kernels.oracles import loss_case, random_boxes, random_clips, random_logits, random_tubelets

pytestmark = NEEDS_KERNELS
WEIGHTS = MatchWeights(1.3, 4.1, 0.7)
LAYERS = 6
# what waits for the device: its numbers are read, or decide on a shape
WAITS = re.compile(
    r"_local_scalar_dense|item|nonzero|masked_select|_?unique|is_nonzero|equal$|bincount|repeat_interleave"
)


class Watch(TorchDispatchMode):
    """Refuses operators that wait for the device, and counts those that launch something there."""

    def __init__(self) -> None:
        super().__init__()
        self.launching: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        assert not WAITS.match(name), name
        if name == "_to_copy":
            assert kwargs.get("device", args[0].device) == args[0].device, "copied to another device"
        if name in ("copy_", "_copy_from"):
            assert args[0].device == args[1].device, "copied to another device"
        result = func(*args, **kwargs)
        silent = func.is_view or name in ("detach", "_unsafe_view") or name.startswith("empty")
        if func.namespace == "aten" and isinstance(result, Tensor) and not silent:
            self.launching.append(name)
        return result


def make(tubelets: bool, each_frame: bool = False) -> tuple[Tensor, Tensor, Targets | Tubelets, Tensor]:
    logits, boxes, targets, matched = loss_case((LAYERS,), 4, 3, [2, 0], 2, "cross_entropy")
    if each_frame:
        logits = random_logits(LAYERS, 2, 4, 2, 3, seed=3)
    if tubelets:
        targets = random_tubelets([2, 0], 2, 2, 2, seed=1)._replace(labels=targets.labels)
        boxes = random_boxes(LAYERS, 2, 4, 2, seed=2)
    return logits.float().to(DEVICE), boxes.float().to(DEVICE), targets.to(DEVICE), matched.to(DEVICE)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, int]]:
    """The kernels launched, and by how many programs."""
    from actdet_kernels.triton import launch

    found = []
    run = launch.launch

    def counted(kernel: Any, programs: int, **arguments: Any) -> None:
        found.append((kernel.__name__, programs))
        run(kernel, programs, **arguments)

    monkeypatch.setattr(launch, "launch", counted)
    return found


@pytest.mark.parametrize(("tubelets", "each_frame", "most"), [(False, False, 5), (True, False, 6), (True, True, 6)])
def test_a_training_step_takes_few_launches_and_reads_nothing_back(
    tubelets: bool, each_frame: bool, most: int, launched: list[tuple[Any, int]]
) -> None:
    """Kernels, and the operators around them; those within are counted below, on a device that does not exist."""
    logits, boxes, targets, _ = make(tubelets, each_frame)
    logits.requires_grad_()
    boxes.requires_grad_()
    with Watch() as watch:
        matched = match(logits, boxes, targets, backend="triton")
        loss = set_loss(logits, boxes, targets, matched, backend="triton")
        loss.total.backward()
    within = len(operators_within(*make(tubelets, each_frame)))
    assert len(launched) + len(watch.launching) + within <= most, (launched, watch.launching, within)
    kernels = ["pairwise_cost_kernel", "assign_kernel"] if tubelets else ["match_kernel"]
    assert launched[0][1] == LAYERS * 2  # a program for each sample under each layer
    assert [name for name, _ in launched] == [*kernels, "set_loss_kernel", "total_kernel", "gradient_kernel"]
    assert watch.launching == ["ones_like"]
    assert logits.grad is not None
    assert boxes.grad is not None


def operators_within(logits: Tensor, boxes: Tensor, targets: Targets | Tubelets, matched: Tensor) -> list[str]:
    """The operators that the implementations run, on a GPU that only fake tensors believe in: nothing can be read.

    Launches are recorded, and not made.
    """
    from actdet_kernels.triton import launch, loss, matching

    launched = []
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode() as mode, Watch() as watch:
        patch.setattr(launch, "launch", lambda *_, **arguments: launched.append(arguments))
        patch.setattr(launch, "capability", lambda device: (9, 0))

        def on_gpu(value: Tensor) -> Tensor:
            return torch.empty_like(mode.from_tensor(value), device="cuda")

        logits, boxes, matched = (on_gpu(value) for value in (logits, boxes, matched))
        targets = type(targets)(*map(on_gpu, targets))
        matching.match(logits, boxes, targets, CostOptions(WEIGHTS, "softmax", 0.25, 2.0, "giou"))
        for per_layer in (False, True):
            options = LossOptions(WEIGHTS, 0.1, "cross_entropy", 0.25, 2.0, "giou", per_layer)
            *losses, divisors = loss.set_loss(logits, boxes, targets, matched, None, options)
            cotangents = (torch.empty_like(losses[0]), torch.empty_like(losses[1]), None, None)
            loss.set_loss_gradient(logits, boxes, targets, matched, None, divisors, cotangents, options)
    tensors = [value for arguments in launched for value in arguments.values() if isinstance(value, Tensor)]
    assert {value.device.type for value in tensors} == {"cuda"}
    assert len(launched) == 7 + isinstance(targets, Tubelets)
    return watch.launching


@pytest.mark.parametrize("tubelets", [False, True])
def test_the_implementations_run_nothing_but_kernels(tubelets: bool) -> None:
    assert operators_within(*make(tubelets)) == []


@pytest.mark.parametrize("changed", [False, True])
def test_a_batch_of_clips_is_one_launch(changed: bool, launched: list[tuple[Any, int]]) -> None:
    """From outside, and by what the implementation runs on a device that does not exist."""
    from actdet_kernels.triton import clips, launch

    pool, indices, *changes = random_clips((4, 30, 20), 2, 3, seed=5)
    frame_means = frame_levels(pool)
    values = [pool, indices, *changes, frame_means] if changed else [pool, indices]
    with Watch() as watch:
        gather_clips(*(value.to(DEVICE) for value in values), backend="triton")
    assert launched == [("gather_clips_kernel", 2 * 3 * 2)]  # two programs for the 600 pixels of every frame
    assert watch.launching == []
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode() as mode, Watch() as watch:
        patch.setattr(launch, "launch", lambda kernel, programs, **arguments: launched.append(kernel))
        patch.setattr(launch, "capability", lambda device: (9, 0))
        on_gpu = [torch.empty_like(mode.from_tensor(value), device="cuda") for value in values]
        clips.gather_clips(*on_gpu, *[None] * (5 - len(on_gpu)), dtype=torch.float16)
    assert len(launched) == 2
    assert watch.launching == []


@pytest.mark.parametrize("with_shortcut", [False, True])
def test_batch_norm_is_three_launches_forward_and_three_backward(with_shortcut: bool) -> None:
    """On a device that does not exist."""
    from actdet_kernels.triton import launch, norm

    launched: list[str] = []
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(), Watch() as watch:
        patch.setattr(launch, "launch", lambda kernel, programs, **arguments: launched.append(kernel.__name__))
        x = torch.empty(2, 24, 3, 5, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        weight, bias = (torch.empty(24, device="cuda") for _ in range(2))
        shortcut = torch.empty_like(x) if with_shortcut else None
        watch.launching.clear()
        y, statistics = norm.batch_norm(x, weight, bias, shortcut, True, 1e-5)
        assert launched == ["feature_sums_kernel", "statistics_kernel", "normalize_kernel"]
        norm.batch_norm_gradient(y, x, weight, bias, shortcut, statistics, True)
    assert launched[3:] == ["gradient_sums_kernel", "weight_gradient_kernel", "feature_gradient_kernel"]
    assert watch.launching == []


@pytest.mark.parametrize("deterministic", [False, True])
def test_deformable_attention_is_one_launch_and_waits_for_nothing(deterministic: bool) -> None:
    """On a device that does not exist. Its gradient is two or three launches, and PyTorch's around them."""
    from actdet_kernels.triton import deformable, launch

    sizes = (3, 4, 2, 2)
    launched: list[str] = []
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(), Watch() as watch:
        patch.setattr(launch, "launch", lambda kernel, programs, **arguments: launched.append(kernel.__name__))
        levels = torch.empty(2, 3, device="cuda", dtype=torch.int32)
        patch.setattr(deformable, "level_table", lambda sizes, device: levels)
        values = torch.empty(2, 16, 3, 4, device="cuda", dtype=torch.bfloat16)
        points = torch.empty(2, 5, 3, 2, 4, 2, device="cuda")
        weights = torch.empty(2, 5, 3, 2, 4, device="cuda")
        watch.launching.clear()
        out = deformable.deformable_attention(values, points, weights, sizes, None)
        assert launched == ["deformable_attention_kernel"]
        assert watch.launching == []
        deformable.deformable_attention_gradient(out, values, points, weights, sizes, None, deterministic)
    if deterministic:
        assert launched[1:] == ["deformable_gradient_kernel", "from_integers_kernel"]
        assert watch.launching == ["linalg_vector_norm", "linalg_vector_norm", "stack", "zeros"]
    else:
        assert launched[1:] == ["deformable_gradient_kernel"]
        assert watch.launching == ["zeros", "_to_copy"]


@pytest.mark.parametrize("with_classes", [False, True])
def test_a_center_loss_is_three_launches_and_its_gradient_two(with_classes: bool) -> None:
    """On a device that does not exist, and nothing waits for it."""
    from actdet_kernels.triton import centers, launch

    launched: list[tuple[str, int]] = []
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(), Watch() as watch:
        patch.setattr(
            launch, "launch", lambda kernel, programs, **arguments: launched.append((kernel.__name__, programs))
        )
        patch.setattr(launch, "capability", lambda device: (9, 0))
        maps = CenterMaps(
            torch.empty(24, 1, 72, 72, device="cuda"),
            torch.empty(24, 5, 2, 72, 72, device="cuda"),
            torch.empty(24, 5, 4, 72, 72, device="cuda"),
            torch.empty(24, 24, 9, 9, device="cuda") if with_classes else None,
        )
        targets = Tubelets(
            torch.empty(24, 8, dtype=torch.int64, device="cuda"),
            torch.empty(24, 8, 5, 4, device="cuda"),
            torch.empty(24, dtype=torch.int32, device="cuda"),
            torch.empty(24, 8, 5, dtype=torch.bool, device="cuda"),
        )
        options = CenterOptions((0.01, 1.0, 0.5, 0.05), 2, "published", "ellipse", "ellipse", True, 4, 2.0, 4.0)
        *losses, divisors = centers.center_loss(maps, targets, options)
        centers.center_loss_gradient(maps, targets, divisors, (losses[0], None, None, None, None), options)
    tiles = -(-72 * 72 // centers.BLOCK_P)
    pixels = 24 * tiles * (1 + 5)
    assert launched == [
        ("actors_kernel", 24),
        ("center_loss_kernel", pixels + 24 * with_classes),
        ("center_total_kernel", 1),
        ("actors_kernel", 24),
        ("center_gradient_kernel", pixels + 24 * 2 * with_classes),
    ]
    assert watch.launching == []


@pytest.mark.parametrize("with_classes", [False, True])
def test_peaks_are_one_launch_and_wait_for_nothing(with_classes: bool) -> None:
    """On a device that does not exist, for maps whose channels lie side by side."""
    from actdet_kernels.triton import launch, peaks

    launched: list[tuple[str, int]] = []
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(), Watch() as watch:
        patch.setattr(
            launch, "launch", lambda kernel, programs, **arguments: launched.append((kernel.__name__, programs))
        )
        patch.setattr(launch, "capability", lambda device: (9, 0))
        centers, movement, sizes, classes = (
            torch.empty(2, 18, 18, channels, device="cuda").movedim(-1, 1) for channels in (1, 10, 20, 24)
        )
        maps = CenterMaps(centers, movement.unflatten(1, (5, 2)), sizes.unflatten(1, (5, 4)))
        peaks.center_peaks(maps._replace(classes=classes) if with_classes else maps, 10, True)
    assert launched == [("center_peaks_kernel", 2)]
    assert watch.launching == []


@pytest.mark.parametrize("frames", [None, 5])
def test_suppression_is_one_launch_and_waits_for_nothing(frames: int | None) -> None:
    """On a device that does not exist: a program for each class of each sample."""
    from actdet_kernels.triton import launch, suppression

    launched: list[tuple[str, int]] = []
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(), Watch() as watch:
        patch.setattr(
            launch, "launch", lambda kernel, programs, **arguments: launched.append((kernel.__name__, programs))
        )
        patch.setattr(launch, "capability", lambda device: (9, 0))
        boxes = torch.empty(2, 245, *(() if frames is None else (frames,)), 4, device="cuda")
        suppression.suppress_overlaps(boxes, torch.empty(2, 245, 24, device="cuda"), 0.5, 0.0)
    assert launched == [("suppress_overlaps_kernel", 48)]
    assert watch.launching == []


@pytest.mark.parametrize("name", ["item", "tolist", "cpu", "nonzero", "unique", "mask"])
def test_the_watch_does_refuse(name: str) -> None:
    reads = {
        "item": lambda value: value[0].item(),
        "tolist": lambda value: value.tolist(),
        "cpu": lambda value: value.cpu(),
        "nonzero": lambda value: value.nonzero(),
        "unique": lambda value: value.unique(),
        "mask": lambda value: value[value > 0],
    }
    with pytest.raises((AssertionError, RuntimeError)), FakeTensorMode(), Watch():
        reads[name](torch.empty(3, device="cuda"))
