"""Checkpoints: one safetensors file of named tensors, with what they belong to as JSON in its header.

Nothing in such a file can be executed. Two kinds are written: "weights", the trained detector and all that
prediction needs to know of it, and "training", the same with the optimizer's state, from which training goes on.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from actdet.config import LossConfig, ModelConfig
from actdet.errors import ActdetError, DataError
from actdet.files import write_bytes
from actdet.models import ActionDetector

FORMAT = 1
_KEY = "actdet"


@dataclass(frozen=True)
class About:
    """What a checkpoint says of itself."""

    model: ModelConfig
    reader: str
    """The reader that decoded the training clips: pyav, dali-cpu or dali-gpu."""
    clip_seconds: float
    """Median duration of the training clips: the window that prediction slides over a longer video."""
    loss: LossConfig = LossConfig()
    """The weights of the loss that it was trained with: the rule that decides needs no_object's."""
    held_out: tuple[str, ...] = ()
    """Names of the clips that the training run kept aside for evaluation."""
    training: dict[str, Any] | None = None
    """The state of the training run (settings, data, step), in a "training" checkpoint."""


def save_checkpoint(path: Path, tensors: dict[str, Tensor], about: About) -> None:
    """Write a checkpoint, all of it or nothing. Raises DataError where the disk refuses."""
    header = json.dumps({"format": FORMAT, **asdict(about)})
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(contiguous, metadata={_KEY: header}))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], About]:
    """The tensors (on the CPU) and the description. Raises DataError for anything but a whole actdet checkpoint."""
    about = read_about(path)
    try:
        return safetensors.torch.load_file(path), about
    except (SafetensorError, OSError) as error:
        raise DataError(path, f"the checkpoint cannot be read: {error}") from error


def read_about(path: Path) -> About:
    """The description alone, without reading the tensors. Raises DataError as `read_checkpoint`."""
    if not path.is_file():
        raise DataError(path, "no such checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DataError(path, f"not a whole safetensors file, so no actdet checkpoint ({error})") from error
    if _KEY not in metadata:
        raise DataError(path, "a safetensors file, but not an actdet checkpoint: its header has no actdet entry")
    try:
        header = json.loads(metadata[_KEY])
        if header.pop("format") != FORMAT:
            raise DataError(path, f"written by another version of actdet: this one reads checkpoint format {FORMAT}")
        model = header.pop("model")
        model["class_names"], header["held_out"] = tuple(model["class_names"]), tuple(header["held_out"])
        return About(model=ModelConfig(**model), loss=LossConfig(**header.pop("loss")), **header)
    except (ValueError, TypeError, KeyError, AttributeError, ActdetError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(path, f"its description cannot be read: {error}") from error


def load_detector(path: Path, device: torch.device | str = "cpu") -> tuple[ActionDetector, About]:
    """The detector of a checkpoint of either kind, in evaluation mode on `device`.

    Raises DataError for anything but a whole actdet checkpoint whose tensors fit its own description.
    """
    tensors, about = read_checkpoint(path)
    detector = ActionDetector(about.model)
    load_weights(detector, tensors, path)
    return detector.eval().to(device), about


def load_weights(detector: ActionDetector, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy the tensors named `model.*` into `detector`; DataError naming the first that is missing or misshapen."""
    own = detector.state_dict()
    for name, value in own.items():
        stored = tensors.get(f"model.{name}")
        if stored is None:
            raise DataError(path, f"a checkpoint of another configuration: it has no {name}")
        if stored.shape != value.shape:
            raise DataError(
                path,
                f"a checkpoint of another configuration: {name} is {tuple(stored.shape)}, "
                f"should be {tuple(value.shape)}",
            )
    detector.load_state_dict({name: tensors[f"model.{name}"] for name in own})
