"""The training step: every way to launch it gives the same losses, nothing in it waits for the device.

Graphs need a GPU; those tests are marked `gpu`.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from actdet_kernels import Targets
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from actdet.data.augment import Batch
from actdet.device import choose_precision
from actdet.distributed import Processes
from actdet.errors import ActdetError
from actdet.models.backbones.convolution import fuse_norms
from actdet.models.detr import losses as detector_losses
from actdet.models.detr.config import ModelConfig
from actdet.models.detr.detector import ActionDetector
from actdet.models.detr.losses import LOSSES
from actdet.training import train_step as stepping
from actdet.training.config import TrainConfig
from actdet.training.graph import WARM_UP
from actdet.training.train_step import TrainStep

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
    """32 steps in float32 with dropout, of which both draw the same."""
    given = batches(4) * 8
    model = replace(MODEL, encoder_layers=0)
    eager, compiled = (curve(step_of(mode, model=model), given) for mode in ("eager", "compile"))
    assert eager[-4:, 0].mean() < 0.5 * eager[:4, 0].mean()
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.slow
@pytest.mark.timeout(900)
@COMPILER
def test_compiled_steps_in_bf16_are_as_near_to_float32_as_eager_ones() -> None:
    """32 steps; fused operators round less often."""
    given = batches(4) * 8
    model = replace(MODEL, encoder_layers=0)
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
    """In place of `match`, whose reference reads the cost. The kernels' own tests show that they do not."""
    matched = torch.arange(targets.labels.shape[1]).expand(*logits.shape[:-2], -1)
    return torch.where(targets.valid & (matched < logits.shape[-2]), matched, -1)


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize("settings", [{}, {"ema_decay": 0.9}, {"freeze_backbone": True}])
def test_a_step_reads_nothing_back(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector_losses, "match", in_order)
    step = step_of("eager", **settings)
    given = batches(3)
    with Reads() as reads:
        for number, batch in enumerate(given):
            step.run(batch, lr=1e-3, seed=number, number=number)
    assert reads.found == []
    with Reads() as reads:
        float(step.losses[0])
    # What reads a value is seen.
    assert reads.found


@pytest.mark.usefixtures("tiny_backbone")
def test_the_running_average_is_that_of_the_weights() -> None:
    step = step_of("eager", ema_decay=0.6)
    given = batches(12)
    plain = step_of("eager")
    expected = {name: value.clone().double() for name, value in step.average.items()}
    assert "backbone.1.running_var" in expected
    for number, batch in enumerate(given):
        step.run(batch, lr=1e-2, seed=number, number=number)
        plain.run(batch, lr=1e-2, seed=number, number=number)
        # At first it is an average of all steps.
        decay = min(0.6, (1 + number) / (10 + number))
        live = step.detector.state_dict()
        for name, value in expected.items():
            value.mul_(decay).add_(live[name].double(), alpha=1 - decay)
    for name, value in step.average.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    after = {name: value.clone() for name, value in step.detector.state_dict().items()}
    for name, value in plain.detector.state_dict().items():
        # Averaging changes no training.
        assert torch.equal(value, after[name])
    with step.averaged():
        for name, value in step.detector.state_dict().items():
            if name in expected:
                torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    for name, value in step.detector.state_dict().items():
        assert torch.equal(value, after[name])


def weights(seed: int) -> list[Tensor]:
    """Tensors with the shapes and the layouts of a detector's parameters, statistics and heads."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(), (7,), (3, 256), (12, 256), (64, 3, 3, 7, 7), (48, 64, 3, 1, 1)]
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    return [m.to(memory_format=torch.channels_last_3d) if m.ndim == 5 else m for m in made]


class Launches(TorchDispatchMode):
    """Counts operators."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("weight", [1.0, 0.9, 0.4, 1e-4])
def test_averages_that_move_together_move_as_one_by_one(weight: float) -> None:
    """On a GPU, where a launch for each tensor would take longer than the arithmetic."""
    averages = weights(0)
    targets = weights(1)
    share = torch.tensor(weight)
    exact = [a.double() + share.double() * (t.double() - a.double()) for a, t in zip(averages, targets, strict=True)]
    with Launches() as launches:
        stepping._move_by_foreach(averages, targets, share)
    assert launches.count == 3
    for average, wanted in zip(averages, exact, strict=True):
        torch.testing.assert_close(average.double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("tiny_backbone")
def test_a_cpu_moves_each_average_by_lerp() -> None:
    """Bit for bit; the numbers of a training do not depend on how many tensors are moved at once."""
    step = step_of("eager", ema_decay=0.6)
    (batch,) = batches(1)
    before = {name: value.clone() for name, value in step.average.items()}
    step.run(batch, lr=1e-2, seed=0, number=3)
    live = step.live()
    for name, value in before.items():
        assert torch.equal(step.average[name], value.lerp_(live[name], torch.tensor(1 - 4 / 13)))


@pytest.mark.usefixtures("tiny_backbone")
def test_processes_send_gradients_and_no_statistics(tmp_path: Path) -> None:
    """All of them have the same statistics already, as the tests of two processes show."""
    dist.init_process_group("gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        step = TrainStep(ActionDetector(MODEL), CONFIG, CPU, torch.float32, "eager", Processes(0, 2))
        network: Any = step._network
        assert any(name.endswith("running_mean") for name, _ in network.named_buffers())
        assert network.require_forward_param_sync
        assert not network.will_sync_module_buffers()
    finally:
        dist.destroy_process_group()


class Device:
    """In place of the GPU: notes what runs, and which graphs are alive when something runs operator by operator."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.ran: list[tuple[str, int]] = []
        self.alive: set[Any] = set()
        self.pools = 0
        self.pool_of: dict[Any, int] = {}
        self.capturing: Any = None
        device = self

        class Graph:
            size: int

            def replay(self) -> None:
                assert self in device.alive
                device.ran.append(("replayed", self.size))

            def reset(self) -> None:
                device.alive.remove(self)

        class Stream:
            def wait_stream(self, other: Any) -> None:
                pass

        @contextmanager
        def capture(graph: Any, pool: int, stream: Any, **_: Any) -> Iterator[None]:
            # PyTorch does not begin a capture in a pool that was used and is used by no graph any more.
            assert pool == device.pools
            device.capturing = graph
            yield
            device.capturing = None
            device.alive.add(graph)

        @contextmanager
        def stream(_: Any) -> Iterator[None]:
            yield

        def new_pool() -> int:
            assert not device.alive
            device.pools += 1
            return device.pools

        for name, value in {
            "CUDAGraph": Graph,
            "Stream": Stream,
            "current_stream": Stream,
            "stream": stream,
            "graph": capture,
            "graph_pool_handle": new_pool,
            "synchronize": lambda: None,
            "empty_cache": lambda: None,
        }.items():
            patch.setattr(torch.cuda, name, value)

    def step(self, batch: Batch) -> None:
        size = len(batch.clips)
        if self.capturing is None:
            assert not self.alive
            self.ran.append(("eager", size))
        else:
            self.capturing.size = size


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


@pytest.mark.usefixtures("tiny_backbone")
def test_no_step_runs_eagerly_beside_a_graph(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of four batches and a smaller one: both sets of activations never lie in memory."""
    monkeypatch.setattr(TrainStep, "_step", lambda self, batch: device.step(batch))
    (large,) = batches(1)
    (small,) = batches(1, size=3)
    step = step_of("graph")
    for _ in range(5):
        for batch in (large, large, large, large, small):
            step.run(batch, lr=1e-3, seed=0, number=0)

    how = [("eager" if number < WARM_UP else "replayed", 4) for number in range(20)]
    last = [("eager" if epoch < WARM_UP else "replayed", 3) for epoch in range(5)]
    assert device.ran == [run for epoch in range(5) for run in (*how[4 * epoch : 4 * epoch + 4], last[epoch])]
    assert len(device.alive) == 2


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), torch.OutOfMemoryError),
        (RuntimeError("CUDA error: out of memory"), torch.OutOfMemoryError),
        (RuntimeError("CUDA error: operation not permitted when stream is capturing"), ActdetError),
    ],
    ids=["allocator", "driver", "other"],
)
def test_why_a_step_is_not_captured(
    reason: RuntimeError, expected: type[Exception], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A capture that fails is ended by a second error, which hides the first."""

    def run(self: TrainStep, batch: Batch) -> None:
        device.step(batch)
        if device.capturing:
            raise reason

    begun = torch.cuda.graph

    @contextmanager
    def capture(*arguments: Any, **options: Any) -> Iterator[None]:
        with begun(*arguments, **options):
            try:
                yield
            finally:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(TrainStep, "_step", run)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    (batch,) = batches(1)
    step = step_of("graph")
    for _ in range(WARM_UP):
        step.run(batch, lr=1e-3, seed=0, number=0)
    with pytest.raises(expected) as caught:
        step.run(batch, lr=1e-3, seed=0, number=0)
    assert str(reason) in str(caught.value)
    assert ("step eager" in str(caught.value)) == (expected is ActdetError)


@pytest.mark.usefixtures("tiny_backbone")
def test_without_an_average_there_is_nothing_to_swap() -> None:
    step = step_of("eager")
    before = {name: value.clone() for name, value in step.detector.state_dict().items()}
    with step.averaged():
        assert all(torch.equal(value, before[name]) for name, value in step.detector.state_dict().items())


def test_checkpointing_changes_no_losses() -> None:
    """With R(2+1)D-18 itself, in float32: the same operators on the same values."""
    model = replace(MODEL, dropout=0.0)
    given = batches(2, size=2)
    kept, again = (curve(step_of("eager", model=model, checkpointing=flag), given) for flag in (False, True))
    torch.testing.assert_close(again, kept, rtol=1e-5, atol=1e-6)
    assert kept.shape == (2, len(LOSSES))


# What only a GPU can show


@contextmanager
def deterministic() -> Iterator[None]:
    """Let PyTorch take algorithms that give the same bits every time, where it has them.

    Those of cuBLAS do so with CUBLAS_WORKSPACE_CONFIG, which must be set before the process starts.
    """
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


@GPU
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", sorted({torch.float32, torch.float16, HALF}, key=str))
def test_captured_steps_give_the_losses_of_eager_ones(dtype: torch.dtype) -> None:
    """32 steps of R(2+1)D-18, with dropout, an average and a shorter batch now and then.

    Both with the norms of captured steps, and without algorithms that add up in any order: in so many steps the least
    difference becomes one of 0.3.
    """
    device = torch.device("cuda")
    given = [batch for pair in zip(batches(16, device), batches(16, device, 3), strict=True) for batch in pair]
    with deterministic():
        steps = [step_of(mode, device, dtype, ema_decay=0.9) for mode in ("eager", "graph")]
        fuse_norms(steps[0].detector.backbone)
        curves = [curve(step, given, 1e-4) for step in steps]
    tolerance = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 2e-2}[dtype]
    torch.testing.assert_close(curves[1], curves[0], rtol=tolerance, atol=tolerance)


def most_reserved(sizes: list[int]) -> int:
    """The most bytes that PyTorch held at once for captured steps on batches of these sizes."""
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    model = replace(MODEL, image_size=112, frames=16)
    step = step_of("graph", device, HALF, model)
    for number, size in enumerate(sizes):
        clips = torch.zeros(size, 16, 112, 112, 3, device=device).permute(0, 4, 1, 2, 3)
        targets = Targets(
            torch.zeros(size, 1, dtype=torch.int64), torch.full((size, 1, 4), 0.4), torch.ones(size).int()
        )
        step.run(Batch(clips, targets.to(device)), lr=1e-4, seed=number, number=number)
    return torch.cuda.max_memory_reserved() - before


@GPU
@pytest.mark.gpu
def test_a_smaller_last_batch_takes_no_memory_of_its_own() -> None:
    """Five epochs of four batches of 8 and one of 7: both sets of activations would be nearly twice as much."""
    alone = most_reserved([8] * 20)
    assert most_reserved([8, 8, 8, 8, 7] * 5) < 1.4 * alone


@GPU
@pytest.mark.gpu
# The mode that forbids waits warns that it is a prototype.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_no_step_waits_for_the_gpu(mode: str) -> None:
    device = torch.device("cuda")
    step = step_of(mode, device, HALF, ema_decay=0.9)
    given = batches(8, device)
    # Libraries are set up and the step is captured.
    curve(step, given)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for number, batch in enumerate(given):
            step.run(batch, lr=1e-3, seed=number, number=number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
