"""The training step: every way to launch it gives the same losses, nothing in it waits for the device.

Graphs need a GPU; those tests are marked `gpu`.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from actdet_kernels import Targets
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from actdet import step as stepping
from actdet.config import ModelConfig, TrainConfig
from actdet.data.augment import Batch
from actdet.device import choose_precision
from actdet.models import ActionDetector
from actdet.step import LOSSES, TrainStep

MODEL = ModelConfig(image_size=32, frames=8, encoder_layers=1, decoder_layers=1, queries=6, dropout=0.1)
CONFIG = TrainConfig(lr=1e-3, auxiliary_weight=0.5, backbone_weights="none")
CPU = torch.device("cpu")
COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
# bf16 where the device has units for it, float16 on older GPUs.
HALF, _ = choose_precision("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def batches(count: int, device: torch.device = CPU, size: int = 4) -> list[Batch]:
    """Two of three clips of `size` hold an action."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        clips = torch.randn(size, 8, 32, 32, 3, generator=generator).permute(0, 4, 1, 2, 3)
        boxes = 0.3 + 0.4 * torch.rand(size, 2, 4, generator=generator)
        counts = torch.tensor([1, 2, 0, 1, 1][:size], dtype=torch.int32)
        labels = torch.randint(0, 2, (size, 2), generator=generator)
        made.append(Batch(clips.to(device), Targets(labels, boxes, counts).to(device)))
    return made


def step_of(
    mode: str, device: torch.device = CPU, dtype: torch.dtype = torch.float32, model: ModelConfig = MODEL, **config: Any
) -> TrainStep:
    torch.manual_seed(0)
    return TrainStep(ActionDetector(model), replace(CONFIG, **config), device, dtype, mode)


def curve(step: TrainStep, given: list[Batch], lr: float = 1e-3) -> Tensor:
    """(steps, 5) the losses of each step."""
    losses = []
    for number, batch in enumerate(given):
        step.losses.zero_()
        step.run(batch, lr=lr * (1 - number / 40), seed=number, number=number)
        losses.append(step.losses.clone())
    return torch.stack(losses).cpu()


@pytest.mark.usefixtures("tiny_backbone")
@COMPILER
def test_compiled_steps_give_the_losses_of_eager_ones() -> None:
    """32 steps in float32, with dropout: both draw the same."""
    given, model = batches(4) * 8, replace(MODEL, encoder_layers=0)
    eager, compiled = (curve(step_of(mode, model=model), given) for mode in ("eager", "compile"))
    assert eager[-4:, 0].mean() < 0.5 * eager[:4, 0].mean()
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.slow
@pytest.mark.timeout(900)
@COMPILER
def test_compiled_steps_in_bf16_are_as_near_to_float32_as_eager_ones() -> None:
    """32 steps; fused operators round less often."""
    given, model = batches(4) * 8, replace(MODEL, encoder_layers=0)
    exact = curve(step_of("eager", model=model), given, 1e-4)
    eager, compiled = (
        curve(step_of(mode, dtype=torch.bfloat16, model=model), given, 1e-4) for mode in ("eager", "compile")
    )
    error = (eager - exact).abs().amax(0)
    assert (error > 0)[0]
    assert ((compiled - exact).abs().amax(0) <= 2 * error).all()
    torch.testing.assert_close(compiled[:4], exact[:4], rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("tiny_backbone")
def test_another_seed_draws_another_dropout() -> None:
    (batch,) = batches(1)
    losses = []
    for seed in (0, 0, 1):
        step = step_of("eager")
        step.run(batch, lr=0.0, seed=seed, number=0)
        losses.append(step.losses)
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


class Reads(TorchDispatchMode):
    """Counts single values read by the host and shapes that depend on values; copies to the host only a GPU shows."""

    NAMES = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if any(name.startswith(read) for read in self.NAMES):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def in_order(logits: Tensor, boxes: Tensor, targets: Targets, **options: Any) -> Tensor:
    """In place of `match`, whose reference reads the cost; that the kernels do not is tested with them."""
    matched = torch.arange(targets.labels.shape[1]).expand(*logits.shape[:-2], -1)
    return torch.where(targets.valid & (matched < logits.shape[-2]), matched, -1)


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize("settings", [{}, {"ema_decay": 0.9}, {"freeze_backbone": True}])
def test_a_step_reads_nothing_back(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping, "match", in_order)
    step, given = step_of("eager", **settings), batches(3)
    with Reads() as reads:
        for number, batch in enumerate(given):
            step.run(batch, lr=1e-3, seed=number, number=number)
    assert reads.found == []
    with Reads() as reads:
        float(step.losses[0])
    assert reads.found  # so what reads a value is seen


@pytest.mark.usefixtures("tiny_backbone")
def test_the_running_average_is_that_of_the_weights() -> None:
    step, given = step_of("eager", ema_decay=0.6), batches(12)
    plain = step_of("eager")
    expected = {name: value.clone().double() for name, value in step.average.items()}
    assert "backbone.1.running_var" in expected
    for number, batch in enumerate(given):
        step.run(batch, lr=1e-2, seed=number, number=number)
        plain.run(batch, lr=1e-2, seed=number, number=number)
        decay = min(0.6, (1 + number) / (10 + number))  # it is one average of all at first
        live = step.detector.state_dict()
        for name, value in expected.items():
            value.mul_(decay).add_(live[name].double(), alpha=1 - decay)
    for name, value in step.average.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    after = {name: value.clone() for name, value in step.detector.state_dict().items()}
    for name, value in plain.detector.state_dict().items():
        assert torch.equal(value, after[name])  # averaging changes no training
    with step.averaged():
        for name, value in step.detector.state_dict().items():
            if name in expected:
                torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    for name, value in step.detector.state_dict().items():
        assert torch.equal(value, after[name])


@pytest.mark.usefixtures("tiny_backbone")
def test_without_an_average_there_is_nothing_to_swap() -> None:
    step = step_of("eager")
    before = {name: value.clone() for name, value in step.detector.state_dict().items()}
    with step.averaged():
        assert all(torch.equal(value, before[name]) for name, value in step.detector.state_dict().items())


def test_checkpointing_changes_no_losses() -> None:
    """With R(2+1)D-18 itself, in float32: the same operators on the same values."""
    model = replace(MODEL, dropout=0.0)
    given = batches(3)
    kept, again = (curve(step_of("eager", model=model, checkpointing=flag), given) for flag in (False, True))
    torch.testing.assert_close(again, kept, rtol=1e-5, atol=1e-6)
    assert kept.shape == (3, len(LOSSES))


# What only a GPU can show


@GPU
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", sorted({torch.float32, torch.float16, HALF}, key=str))
def test_captured_steps_give_the_losses_of_eager_ones(dtype: torch.dtype) -> None:
    """32 steps of R(2+1)D-18, with dropout, an average and a shorter batch now and then."""
    device = torch.device("cuda")
    given = [batch for pair in zip(batches(16, device), batches(16, device, 3), strict=True) for batch in pair]
    curves = [curve(step_of(mode, device, dtype, ema_decay=0.9), given, 1e-4) for mode in ("eager", "graph")]
    tolerance = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 2e-2}[dtype]
    torch.testing.assert_close(curves[1], curves[0], rtol=tolerance, atol=tolerance)


@GPU
@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # the mode that forbids waits warns that it is a prototype
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_no_step_waits_for_the_gpu(mode: str) -> None:
    device = torch.device("cuda")
    step, given = step_of(mode, device, HALF, ema_decay=0.9), batches(8, device)
    curve(step, given)  # whatever is set up once, and the capture
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for number, batch in enumerate(given):
            step.run(batch, lr=1e-3, seed=number, number=number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
