"""The training step: against the plain way to do it, and with one thing changed at a time; and what it costs on paper.

Every time is taken in a process of its own (`train_step.py`), since libraries keep settings for a whole process. A row
is timed only where the losses of its first two steps are those of the plain step in float32.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import pytest
import torch

from actdet.device import choose_precision
from actdet.models.detr.config import ModelConfig
from actdet.models.families import config_class
from actdet.training.cost import Card, find_card, floor_seconds, largest_batch, stage_costs, step_flop
from bench.measure import quantiles

ON_GPU = torch.cuda.is_available()
PLAIN, OURS = "plain", "actdet"
CHANGES: dict[str, dict[str, Any]] = {
    "without padding": {"aligned": False},
    "3-D convolutions": {"flat": False},
    "libraries as they are": {"prepared": False},
    "checkpointing": {"checkpointing": True},
    "compile": {"mode": "compile"},
} | ({"eager": {"mode": "eager"}} if ON_GPU else {})
TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 1e-2}  # of a loss, relative
Record = Callable[..., None]


class Line(NamedTuple):
    """One line of the table: B clips of T frames of S x S, the arithmetic, and who is timed."""

    batch: int
    frames: int
    size: int
    precision: str
    names: tuple[str, ...]
    family: str = "detr"

    def __str__(self) -> str:
        size = f"{self.batch} of {self.frames}x{self.size}x{self.size}"
        return size if self.family == "detr" else f"{self.family}, {size}"


def lines_of_a_gpu(half: str) -> list[Line]:
    """What is timed on a GPU, most worth first. half: bf16, or fp16 on a card that has no units for it."""
    lines = [Line(8, 16, 224, half, (OURS, "eager", PLAIN, *(name for name in CHANGES if name != "eager")))]
    lines += [Line(8, 16, 112, half, (OURS, "eager", PLAIN))]
    lines += [Line(batch, 16, size, half, (OURS, "eager", PLAIN)) for size in (224, 112) for batch in (1, 4, 32)]
    lines += [Line(8, 16, 224, half, (OURS, "eager", PLAIN), "tubelet")]
    return lines + [Line(8, 16, 224, other, (OURS, "eager")) for other in ("fp16", "fp32") if other != half]


if ON_GPU:
    HALF, _ = choose_precision("auto", torch.device("cuda"))
    LINES = lines_of_a_gpu({torch.bfloat16: "bf16", torch.float16: "fp16"}[HALF])
else:
    LINES = [
        Line(8, 8, 48, "bf16", (OURS, "without padding", "libraries as they are", PLAIN)),
        Line(1, 16, 112, "bf16", (OURS, PLAIN)),
        Line(8, 16, 112, "bf16", (OURS, *CHANGES, PLAIN)),
        Line(8, 16, 112, "fp32", (OURS, PLAIN)),
        Line(1, 16, 224, "bf16", (OURS, PLAIN)),
        Line(8, 16, 48, "fp32", (OURS, PLAIN), "tubelet"),
        Line(2, 16, 112, "bf16", (OURS, PLAIN), "tubelet"),
    ]
CASES = [(line, name) for line in LINES for name in line.names]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("line", "name"), CASES, ids=[f"{line}-{line.precision}-{name}" for line, name in CASES])
def test_step(record: Record, line: Line, name: str, folder: Path) -> None:
    key = {"operation": "training step", "size": str(line), "regime": line.precision, "name": name}
    exact_line = line._replace(precision="fp32", names=())
    result = timed(exact_line if name == PLAIN else line, name)
    if "why" in result:
        record(kind="time", **key, why=result["why"])
        assert name != OURS, result["why"]
        pytest.skip(result["why"])
    exact = timed(exact_line, PLAIN)["losses"]
    if result["losses"] != pytest.approx(exact, rel=TOLERANCE[line.precision]):
        why = f"disagrees with the plain step: losses {result['losses']}, not {exact}"
        record(kind="time", **key, why=why)
        assert name != OURS, why
        pytest.skip(why)
    times = quantiles([1e6 * seconds for seconds in result["seconds"]])
    record(kind="time", **key, wall_us=times)
    rate = 1e6 * line.batch / times["median"]
    parts = {f"{part}_us": 1e6 * seconds for part, seconds in result.get("parts", {}).items()}
    if parts and not ON_GPU:
        parts = {"decode_us": decode_us(line, folder), **parts}
    speed: dict[str, float] = {"clips_per_s": rate}
    if ON_GPU:
        flop = step_flop(config_class(line.family)(image_size=line.size, frames=line.frames)) * rate
        speed["share_of_matmul"] = flop / result["matmul_flop_per_s"]
    record(kind="step", **key, **speed, peak_bytes=result["peak_bytes"], parts=parts)


@cache
def timed(line: Line, name: str) -> dict[str, Any]:
    """What `train_step.py` prints, or why it prints nothing."""
    case = {**line._asdict(), "names": None, "name": name, **CHANGES.get(name, {})}
    command = [sys.executable, "-m", "bench.train_step", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"why": f"fails: {(done.stderr.strip() or str(done.returncode)).splitlines()[-1]}"}
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered clips of 320 x 240, 48 frames of VP9."""
    if ON_GPU:
        return Path()
    from actdet.synthetic.rendered import RenderConfig, render_dataset

    path = tmp_path_factory.mktemp("clips") / "data"
    render_dataset(path, RenderConfig(clips=24, width=320, height=240, frames=48))
    return path


@cache
def decode_us(line: Line, folder: Path) -> float:
    """Microseconds that one process takes to decode and augment a batch."""
    from actdet.data.config import AugmentConfig, ClipSize
    from actdet.data.index import load_index
    from actdet.data.loader import ClipLoader
    from actdet.video.pyav import PyAVReader

    index = load_index(folder)
    size = ClipSize(line.frames, line.size)
    loader = ClipLoader(index, size, PyAVReader((line.size, line.size), 0), torch.device("cpu"))
    ids = range(len(index.clips))
    start = perf_counter()
    batches = sum(1 for _ in loader.train_batches(ids, line.batch, AugmentConfig(), seed=0, epoch=0))
    return 1e6 * (perf_counter() - start) / batches


def known_card(device_name: str) -> Card:
    card = find_card(device_name)
    assert card is not None
    return card


SHEETS = {
    "P100": known_card("Tesla P100-PCIE-16GB"),
    "T4": known_card("Tesla T4"),
    "A100": known_card("NVIDIA A100-SXM4-80GB"),
    "H100": known_card("NVIDIA H100 80GB HBM3"),
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.mark.parametrize("size", [112, 224])
def test_account(record: Record, size: int) -> None:
    """FLOP and bytes of a clip in a batch of 8, stage by stage, and the least time of the batch on each card."""
    model = ModelConfig(image_size=size)
    for name in ("fp32", "fp16"):
        dtype, costs = DTYPES[name], stage_costs(model, 8, DTYPES[name])
        for cost in costs:
            floors = {short: 1e6 * floor_seconds([cost], card, dtype) for short, card in SHEETS.items()}
            record(
                kind="account", size=f"8 of 16x{size}x{size}", precision=name, stage=cost.name, flop=cost.flop,
                bytes=cost.bytes, floor_us=floors,
            )  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("size", [112, 224])
def test_memory(record: Record, size: int, checkpointing: bool) -> None:
    """The largest batch of each card, by the estimate that tests/actdet/training/test_cost.py checks."""
    model = ModelConfig(image_size=size)
    for name in ("fp32", "fp16"):
        batches = {
            f"{gigabytes} GB": largest_batch(model, DTYPES[name], gigabytes * 10**9, checkpointing=checkpointing)
            for gigabytes in (16, 40, 80)
        }
        assert min(batches.values()) > 1
        record(kind="memory", size=f"16x{size}x{size}", precision=name, checkpointing=checkpointing, batches=batches)
