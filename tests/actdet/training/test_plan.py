"""The plan chooses once what a training needs, says why in one line, and everybody follows it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from actdet import device as device_module
from actdet.data import cache as caching
from actdet.data.clips import ClipIndex
from actdet.data.index import load_index
from actdet.distributed import ALONE, Processes
from actdet.errors import ActdetError
from actdet.models.detr.config import ModelConfig
from actdet.training import plan as planning
from actdet.training.config import TrainConfig
from actdet.training.plan import make_plan
from actdet.training.session import open_session
from tests.actdet.command import Actdet
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS
from tests.actdet.training.trainers import CONFIG, CPU, MODEL_CONFIG

CUDA = torch.device("cuda")

# The functions that choose, by the names that the plan calls them by.
CHOICES = ("choose_precision", "choose_step", "choose_reader", "choose_cache", "choose_convolutions", "explain_backend")


@pytest.fixture
def index(rendered: Path) -> ClipIndex:
    return load_index(rendered)


def test_every_choice_is_in_the_plan_with_its_reason(index: ClipIndex) -> None:
    plan = make_plan(index, MODEL_CONFIG, CONFIG, CPU)
    assert (plan.model, plan.config, plan.device, plan.processes) == (MODEL_CONFIG, CONFIG, CPU, ALONE)
    assert (plan.dtype.value, plan.dtype.reason) == (torch.float32, "asked for")
    assert (plan.launch.value, plan.launch.reason) == ("eager", "a CPU has no CUDA graphs")
    assert (plan.reader.value, plan.reader.reason) == ("pyav", "DALI decodes few codecs on a CPU")
    assert plan.cache.value
    assert plan.cache.reason.endswith("of decoded clips kept in memory")
    assert plan.flat.value
    assert plan.matching.value in ("cpu", "reference")
    assert plan.matching.reason


def test_the_first_line_says_every_choice_and_its_reason(index: ClipIndex) -> None:
    plan = make_plan(index, MODEL_CONFIG, CONFIG, CPU, Processes(0, 2))
    line = plan.describe()
    assert "\n" not in line
    parts = line.split("; ")
    assert parts[0].startswith("2 processes, each CPU, ")
    assert parts[1:6] == [
        "float32 (asked for)",
        "step eager (a CPU has no CUDA graphs)",
        f"2-D convolutions ({plan.flat.reason})",
        "reader pyav (DALI decodes few codecs on a CPU)",
        plan.cache.reason,
    ]
    assert line.endswith(f"matching and loss by {plan.matching.value}: {plan.matching.reason}")
    alone = make_plan(index, MODEL_CONFIG, CONFIG, CPU).describe()
    assert alone.startswith("CPU, ")


def _fake_gpu(patch: pytest.MonkeyPatch) -> list[int]:
    """A GPU of which the plan learns only what it asks; returns the batches on which convolutions are measured."""
    measured: list[int] = []

    def convolutions(model: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
        assert (model, device, dtype) == (ModelConfig(), CUDA, torch.bfloat16)
        measured.append(batch)
        return False, "measured"

    patch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    patch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100 PCIe")
    patch.setattr(caching, "free_memory", lambda device: 2**34)
    patch.setattr(planning, "choose_reader", lambda *_, **__: ("dali-gpu", "decodes on the GPU"))
    patch.setattr(planning, "choose_convolutions", convolutions)
    patch.setattr(planning, "explain_backend", lambda device: "triton: NVIDIA H100 PCIe")
    return measured


@pytest.mark.parametrize(("count", "launch", "share"), [(1, "graph", 5), (2, "eager", 3), (3, "eager", 2)])
def test_on_a_gpu_convolutions_are_measured_on_the_largest_share_of_a_batch(
    index: ClipIndex, monkeypatch: pytest.MonkeyPatch, count: int, launch: str, share: int
) -> None:
    measured = _fake_gpu(monkeypatch)
    config = TrainConfig(batch_size=5)
    plan = make_plan(index, ModelConfig(), config, CUDA, Processes(0, count))
    assert measured == [share]
    assert plan.launch.value == launch
    assert (plan.dtype.value, plan.reader.value, plan.flat.value) == (torch.bfloat16, "dali-gpu", False)
    assert (plan.matching.value, plan.matching.reason) == ("triton", "NVIDIA H100 PCIe")
    assert "3-D convolutions (measured)" in plan.describe()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"precision": "fp16"}, "precision fp16 needs a GPU"),
        ({"step": "graph"}, "step graph needs a GPU"),
        ({"reader": "dali", "disk_cache": 1.0}, "reader dali keeps nothing"),
    ],
)
def test_what_was_asked_for_and_cannot_be_is_refused(index: ClipIndex, settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ActdetError, match=problem):
        make_plan(index, MODEL_CONFIG, TrainConfig(**settings), CPU)


def test_a_clip_with_more_actions_than_queries_is_named(rendered: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(rendered, tmp_path / "crowd"))
    text = sorted((data / "annotations").iterdir())[5]
    text.write_text("".join(f"0 {left} 3 20 40\n" for left in range(9)))
    index = load_index(data)
    with pytest.raises(ActdetError) as caught:
        make_plan(index, MODEL_CONFIG, CONFIG, CPU)
    assert str(caught.value) == (
        f"clip {text.stem} has 9 annotations, more than the 8 queries of the model: use --queries 9 or more"
    )


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize("command", ["train", "crossval"])
def test_nobody_chooses_again(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Whatever chooses is called once in a command, also if it trains several times."""
    calls: dict[str, int] = dict.fromkeys(CHOICES, 0)

    def counted(name: str) -> Any:
        choose = getattr(planning, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return choose(*arguments, **options)

        return call

    for name in CHOICES:
        monkeypatch.setattr(planning, name, counted(name))
    # The small backbone has none of these, and their form would be nobody's choice.
    monkeypatch.setattr(planning, "FactorizedConv", nn.Conv3d)
    # These are the functions that others could import.
    for name in ("choose_step", "choose_precision"):
        monkeypatch.setattr(device_module, name, None)
    options = ["--epochs", 1, "--out", tmp_path / "out", *MODEL_OPTIONS, *TRAIN_OPTIONS]
    if command == "crossval":
        options += ["--folds", 2]
    outcome = actdet_command(command, rendered, *options)
    assert outcome.code == 0, outcome.err
    assert calls == dict.fromkeys(CHOICES, 1)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_a_session_follows_the_plan(index: ClipIndex, cache: Any) -> None:
    config = TrainConfig(cache=cache, precision="bf16", workers=0)
    plan = make_plan(index, MODEL_CONFIG, config, CPU)
    with open_session(plan, index) as session:
        assert session.plan is plan
        assert session.loader.reader.name == plan.reader.value == "pyav"
        assert (session.loader.cache is not None) == plan.cache.value == (cache == "memory")
        batch = next(session.loader.train_batches([0, 1], 2, config.augment, seed=0, epoch=0))
        assert batch.clips.dtype == plan.dtype.value == torch.bfloat16
        assert batch.clips.shape == (2, 3, 8, 32, 32)


@pytest.mark.parametrize(
    ("command", "again", "has_options"),
    [
        ("train", "the same command with --resume", True),
        ("crossval", "the same command", True),
        ("demo", "the same command", False),
    ],
)
def test_a_session_advises_only_what_its_command_has(
    index: ClipIndex, command: str, again: str, has_options: bool
) -> None:
    plan = make_plan(index, MODEL_CONFIG, CONFIG, CPU)
    with open_session(plan, index, command=command) as session:
        assert (session.again, session.has_options) == (again, has_options)
