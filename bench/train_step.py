"""Times training steps of one kind in a process of its own, which its settings cannot leave: used by `test_train.py`.

python -m bench.train_step '{"name": "actdet", "size": 112, "frames": 16, "batch": 8, "precision": "bf16"}'

prints {"losses": [...], "seconds": [...], "parts": {...}, "peak_bytes": ...}. Losses are those of the first two steps,
on a GPU of the first six, of which the last are captured; from the same weights and clips for every kind: what shows
that they train the same. Parts are missing where operators are not launched one by one.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from actdet_kernels import Targets
from torch import Tensor

from actdet.data.augment import Batch
from actdet.data.truth import TubeTargets
from actdet.device import prepare_device
from actdet.models.backbones.convolution import set_flat
from actdet.models.backbones.r2plus1d import Backbone
from actdet.models.config import FamilyConfig
from actdet.models.detr import losses as detector_losses
from actdet.models.detr.config import ModelConfig
from actdet.models.families import build_network, loss_class
from actdet.models.tubelet import losses as tubelet_losses
from actdet.models.tubelet.config import TubeletConfig
from actdet.training.config import TrainConfig
from actdet.training.convolution_form import choose_convolutions
from actdet.training.graph import WARM_UP
from actdet.training.train_step import TrainStep
from bench.plain import PlainStep, PlainTubeletStep

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SECONDS, MOST_ROUNDS, LEAST_ROUNDS = 6.0, 20, 3
Timers = list[tuple[str, Any, str]]  # of each part, the owner and the name of a function that belongs to it


def main(case: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    model = model_of(case)
    batch = make_batch(model, case["batch"])
    if case["name"] == "plain":
        plain = (PlainTubeletStep if model.family == "tubelet" else PlainStep)(model, DEVICE)
        batch = batch._replace(clips=batch.clips.contiguous())
        run, loss, timers = lambda: plain.run(batch), lambda: plain.loss.item(), plain_timers(plain)
    else:
        step = make_step(model, case)
        if DEVICE.type == "cuda":
            # What it took to choose the convolutions is not the step's.
            torch.cuda.reset_peak_memory_stats()

        def run() -> None:
            step.run(batch, lr=1e-4, seed=0, number=0)

        def loss() -> float:
            value = step.losses[0].item()
            step.losses.zero_()
            return value

        timers = own_timers(step) if step.mode == "eager" else []
    losses = []
    for _ in range(2 if DEVICE.type == "cpu" else WARM_UP + 3):
        run()
        losses.append(loss())
    seconds, parts = measured(run, timers)
    result = {"losses": losses, "seconds": seconds, "parts": parts, "peak_bytes": peak()}
    if DEVICE.type == "cuda":
        result["matmul_flop_per_s"] = matmul_rate(DTYPES[case["precision"]])
    return result


def model_of(case: dict[str, Any]) -> FamilyConfig:
    """Hints are random, and the plain step has none."""
    if case["family"] == "tubelet":
        return TubeletConfig(image_size=case["size"], frames=case["frames"], denoising_groups=0)
    return ModelConfig(image_size=case["size"], frames=case["frames"], deep_supervision=True, dropout=0.0)


def make_batch(model: FamilyConfig, size: int) -> Batch:
    """Every second clip holds an action, some two."""
    clips = torch.randn(size, model.frames, model.image_size, model.image_size, 3).permute(0, 4, 1, 2, 3)
    targets = Targets(
        torch.randint(0, 2, (size, 2)),
        torch.rand(size, 2, 4) * 0.3 + 0.35,
        torch.tensor([(1, 0, 2, 0)[clip % 4] for clip in range(size)], dtype=torch.int32),
    )
    if model.family == "tubelet":
        # An actor moves to the right, and does the action in two thirds of the frames.
        frames = torch.arange(model.frames)
        boxes = targets.boxes[:, :, None] + torch.tensor([0.2, 0, 0, 0]) * frames[:, None] / model.frames
        visible = (frames % 3 > 0).expand(size, 2, -1)
        targets = TubeTargets(targets.labels, boxes, targets.counts, visible, visible[:, 0, :0])
    return Batch(clips.to(DEVICE), targets.to(DEVICE))


def make_step(model: FamilyConfig, case: dict[str, Any]) -> TrainStep:
    """`TrainStep` as `Trainer` makes it, but for what the case changes."""
    detector = build_network(model)
    if not case.get("aligned", True):
        state = detector.backbone.state_dict()
        detector.backbone = Backbone(aligned=False)
        detector.backbone.load_state_dict(state)
    if case.get("prepared", True):
        prepare_device(DEVICE)
    best, _ = choose_convolutions(model, case["batch"], DEVICE, DTYPES[case["precision"]])
    set_flat(detector.backbone, case.get("flat", best))
    loss = loss_class(model.family)()
    config = TrainConfig(lr=1e-4, weight_decay=0.01, loss=loss, checkpointing=case.get("checkpointing", False))
    mode = case.get("mode", "graph" if DEVICE.type == "cuda" else "eager")
    return TrainStep(detector, config, DEVICE, DTYPES[case["precision"]], mode)


def measured(run: Callable[[], None], timers: Timers) -> tuple[list[float], dict[str, float]]:
    """Seconds of steps, and of the parts of one: on a GPU of other steps, since it takes time to wait for each part."""
    spent: dict[str, float] = {}
    seconds = timed(run) if DEVICE.type == "cuda" else []
    with timing(timers, spent):
        again = timed(run) if timers or not seconds else []
    return seconds or again, {part: total / len(again) for part, total in spent.items()}


def timed(run: Callable[[], Any]) -> list[float]:
    """Seconds of steps that are waited for, a few times each where they are short."""
    seconds: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(seconds) < LEAST_ROUNDS or (len(seconds) < MOST_ROUNDS and time.perf_counter() < end):
        start = time.perf_counter()
        run()
        wait()
        seconds.append(time.perf_counter() - start)
    return seconds


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def peak() -> int:
    """Bytes that the device's tensors took at most; on a CPU, what the process did."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def matmul_rate(dtype: torch.dtype) -> float:
    """FLOP a second of a large product of matrices: what this card's units give."""
    size = 8192
    one, other = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
    out = torch.empty_like(one)
    return 2 * size**3 / min(timed(lambda: torch.mm(one, other, out=out))[1:])


# Where the time goes, waited for at every boundary


def own_timers(step: TrainStep) -> Timers:
    losses = tubelet_losses if step.detector.truth == "tubelet" else detector_losses
    return [
        ("forward", step, "_network"),
        ("match and loss", losses, "match"),
        ("match and loss", losses, "set_loss"),
        ("backward", Tensor, "backward"),
        ("optimizer", torch.nn.utils, "clip_grad_norm_"),
        ("optimizer", step.scaler, "step"),
    ]


def plain_timers(plain: PlainStep) -> Timers:
    return [
        ("forward", plain, "forward"),
        ("match and loss", plain, "criterion"),
        ("backward", Tensor, "backward"),
        ("optimizer", plain, "update"),
    ]


@contextmanager
def timing(timers: Timers, spent: dict[str, float]) -> Iterator[None]:
    if not timers:
        yield
        return
    (part, owner, name), *rest = timers
    function = getattr(owner, name)

    def clocked(*arguments: Any, **options: Any) -> Any:
        wait()
        start = time.perf_counter()
        result = function(*arguments, **options)
        wait()
        spent[part] = spent.get(part, 0.0) + time.perf_counter() - start
        return result

    with mock.patch.object(owner, name, clocked), timing(rest, spent):
        yield


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
