"""A setting that cannot be had is refused in one line, before any work."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch

from actdet.cli.main import app
from tests.actdet.command import Actdet
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS

OPTIONS = [*MODEL_OPTIONS, *TRAIN_OPTIONS]
COMMANDS = list(app.functions)


def _places(command: str) -> list[object]:
    """The files and folders that `command` reads, none of which is there."""
    counts = {"render": 0, "demo": 0, "evaluate": 2, "score": 2, "predict": 2}
    return ["no/such"] * counts.get(command, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--warmup", 9, "--epochs", 3], "the 3 epochs, got 9.0"),
        (["--small-epochs", 4, "--epochs", 3], "small_epochs must be fewer than the 3 epochs, got 4"),
        (["--shallow-epochs", 3, "--epochs", 3], "shallow_epochs must be fewer than the 3 epochs, got 3"),
        (["--shallow-epochs", 1, "--backbone-weights", "kinetics"], "from scratch: set backbone_weights to none"),
        (["--frames", 9], "frames must be a multiple of 8, got 9"),
        (["--image-size", 40], "image_size must be a multiple of 16"),
        pytest.param(
            ["--precision", "fp16"],
            "fp16 needs a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has it"),
        ),
        (["--backbone-weights", "/no/such/file.pth"], "/no/such/file.pth: no such file"),
    ],
)
def test_bad_settings_are_refused(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, arguments: list[object], words: str
) -> None:
    options: dict[object, object] = dict(zip(OPTIONS[::2], OPTIONS[1::2], strict=True))
    options.update(zip(arguments[::2], arguments[1::2], strict=True))
    given = itertools.chain.from_iterable(options.items())
    outcome = actdet_command("train", rendered, "--out", tmp_path / "o", *given)
    assert words in outcome.complaint()
    assert not (tmp_path / "o" / "model.safetensors").exists()


# For each command its number options, with values out of range. Those listed for train are options of all that train.
NUMBERS = {
    "train": {
        "--image-size": [16, 10**9],
        "--frames": [0, 10**12],
        "--queries": [0, 10**25],
        "--encoder-layers": [-1, 10**6],
        "--decoder-layers": [0, 10**6],
        "--dropout": [-0.1, 1, "nan"],
        "--cls-weight": [-1, "inf", "nan"],
        "--l1-weight": [-1, "inf", "nan"],
        "--giou-weight": [-1, "1e308", "nan"],
        "--no-object-weight": [0, "1e-300", "inf", "nan"],
        "--flip": [2, -0.5, "nan"],
        "--crop": [1, "nan"],
        "--color": [-1, 1, "nan"],
        "--mixup": [-1, "1e308", "inf", "nan"],
        "--epochs": [0, 10**12],
        "--batch-size": [0, 10**12],
        "--lr": [0, -1, "1e308", "inf", "nan"],
        "--min-lr": [-1, "1e308", "nan"],
        "--warmup": [-1, "inf", "nan"],
        "--weight-decay": [-1, "inf", "nan"],
        "--clip-norm": [0, "inf", "nan"],
        "--auxiliary-weight": [-1, "inf", "nan"],
        "--small-epochs": [-1, 10**15],
        "--shallow-epochs": [-1, 10**15],
        "--ema-decay": [1, "nan"],
        "--seed": [-1, 2**32, 10**30],
        "--eval-every": [0, 10**15],
        "--workers": [-1, 10**9],
        "--disk-cache": [-1, "1e300", "inf", "nan"],
        "--window": [-1, 86401, "nan", "inf"],
        "--val-share": [-0.1, 1, 1.5, "nan"],
    },
    "evaluate": {"--workers": [-1, 10**9]},
    "score": {"--split": [-1, 0, 10**12]},
    "predict": {"--threshold": [-0.1, 1.5, "inf", "nan"]},
    "export": {"--opset": [-1, 17, 10**9], "--threshold": [-0.1, 1.5, "nan"]},
    "crossval": {"--folds": [-3, 0, 1, 10**12]},
    "ablate": {"--val-share": [-0.1, 1, "nan"], "--table": [0, 101]},
    "render": {
        "--clips": [0, 10**12],
        "--seed": [-1, 2**64],
        "--width": [-64, 10**9],
        "--height": [0, 10**9],
        "--frames": [1, 10**12],
        "--fps": [0, 10**9],
        "--workers": [-1, 10**9],
    },
    "prepare": {"--short-side": [-2, 10**9], "--gop": [0, 10**12], "--workers": [-1, 10**9]},
    "demo": {"--clips": [0, -1, 10**12], "--epochs": [0, 10**12]},
}


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [(c, option, value) for c, options in NUMBERS.items() for option, values in options.items() for value in values],
)
def test_numbers_have_bounds_that_are_checked_first(
    actdet_command: Actdet, tmp_path: Path, command: str, option: str, value: object
) -> None:
    """None of the files is there, so whatever is done before is seen in the complaint."""
    out = tmp_path / "out"
    words = _places(command)
    if command in ("render", "prepare"):
        words.append(out)
    elif command == "score":
        words += ["--protocol", "act"]
    else:
        words += ["--out", out]

    complaint = actdet_command(command, *words, f"{option}={value}").complaint()
    name = option.removeprefix("--").replace("-", "_")
    assert re.match(rf"{name} must be (in [\[(].*, .*[\])]|shorter than the \d+ epochs), got ", complaint)
    assert float(complaint.rpartition(" ")[2]) == pytest.approx(float(str(value)), nan_ok=True)
    assert not out.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_option_is_among_those(actdet_command: Actdet, command: str) -> None:
    text = actdet_command(command, "--help").out
    options = set(re.findall(r"(--[\w-]+) (?:\{None\}\|)?(?:INT|FLOAT)\b", text))
    assert options <= (NUMBERS["train"] | NUMBERS.get(command, {})).keys()
    assert options >= NUMBERS.get(command, {}).keys()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--step", "graph"], "step graph needs a GPU: use auto, eager or compile"),
        (["--step", "compile", "--checkpointing"], "--step compile does its own recomputation"),
        (["--ema-decay", "1.0"], "ema_decay must be in [0, 1), got 1.0"),
    ],
)
def test_a_step_that_cannot_be_had_is_refused(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, options: list[str], problem: str
) -> None:
    outcome = actdet_command("train", rendered, "--out", tmp_path / "run", *OPTIONS, *options)
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith(f"actdet: {problem}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "crossval", "ablate", "demo"])
def test_a_device_is_looked_for_before_any_work(actdet_command: Actdet, tmp_path: Path, command: str) -> None:
    """None of the files is there, so whatever is done before is seen in the complaint."""
    places = _places(command)
    for device in ("tpu", "cuda:99"):
        complaint = actdet_command(command, *places, "--out", tmp_path / "out", "--device", device).complaint()
        assert complaint.startswith("device ")
        assert device in complaint
    assert not (tmp_path / "out").exists()
