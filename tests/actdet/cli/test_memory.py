"""Too little memory for the clips is one line that says what would fit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from actdet.evaluation import clips as evaluation
from actdet.prediction import predictor as prediction
from actdet.training import run as training_run
from actdet.training.train_step import TrainStep
from tests.actdet.command import Actdet
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS

OPTIONS = [*MODEL_OPTIONS, *TRAIN_OPTIONS]


def test_a_batch_too_large_for_the_gpu_says_what_fits(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 ...")

    card = SimpleNamespace(total_memory=16 * 2**30)
    monkeypatch.setattr(TrainStep, "run", run)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(training_run, "largest_batch", lambda *_, checkpointing: 28 if checkpointing else 13)

    options = [*OPTIONS, "--batch-size", 40]
    outcome = actdet_command("train", rendered, "--out", tmp_path / "run", *options)
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1] == (
        "actdet: 16 GiB are too little for batches of 40 clips of 8 x 32 x 32: about 13 a GPU are possible, "
        "28 with --checkpointing; decoded clips take 0.0 GiB, none with --cache none"
    )


def _too_large_for_the_cpu(*_: object, **__: object) -> None:
    torch.empty(2**60, dtype=torch.uint8)


def test_a_batch_too_large_for_the_cpu_is_named(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainStep, "run", _too_large_for_the_cpu)
    options = [*OPTIONS, "--batch-size", 40]
    assert actdet_command("train", rendered, "--out", tmp_path / "run", *options).complaint() == (
        "the CPU has too little free memory for batches of 40 clips of 8 x 32 x 32: "
        "use a smaller --batch-size, --frames or --image-size"
    )


@pytest.mark.parametrize("of", ["CPU", "GPU"])
def test_too_little_memory_for_a_detector_is_said(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    def too_large_for_the_gpu(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 ...")

    too_large = {"CPU": _too_large_for_the_cpu, "GPU": too_large_for_the_gpu}[of]
    monkeypatch.setattr(evaluation, "predict_batch", too_large)
    monkeypatch.setattr(prediction, "predict_batch", too_large)

    out = ["--out", tmp_path / "o"]
    clip = min((rendered / "videos").iterdir())
    complaint = actdet_command("evaluate", model, rendered, "--workers", 0, *out).complaint()
    assert complaint.startswith(f"the {of} has too little free memory for 8 clips of 8 x 32 x 32: ")
    complaint = actdet_command("predict", model, clip, *out).complaint()
    assert complaint.startswith(f"the {of} has too little free memory for windows of 8 x 32 x 32: ")
    assert ("CUDA_VISIBLE_DEVICES=" in complaint) == (of == "GPU")
