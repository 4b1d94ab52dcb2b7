"""Checkpoints: one safetensors file of named tensors, with what they belong to as JSON in its header.

Nothing in such a file can be executed. Two kinds are written: "weights", the trained detector and all that
prediction needs to know of it, and "training", the same with the optimizer's state, from which training goes on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from actdet.errors import ActdetError, DataError
from actdet.files import to_json, write_bytes
from actdet.models.detr.config import LossConfig, ModelConfig
from actdet.models.detr.detector import ActionDetector

FORMAT = 1
_KEY = "actdet"

T = TypeVar("T")


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
    """The state of the training run (settings, data, step); None of a detector whose run is not to go on from it."""


def save_checkpoint(path: Path, tensors: dict[str, Tensor], about: About) -> None:
    """Write a checkpoint, all of it or nothing. Raises DataError where the disk refuses."""
    header = to_json(path, {"format": FORMAT, **asdict(about)})
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
        about = from_json(About, header)
        if not 0 < about.clip_seconds < math.inf:
            raise ActdetError(f"clip_seconds must be above 0, got {about.clip_seconds}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ActdetError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(path, f"its description cannot be read: {error}") from error
    return about


def from_json(cls: type[T], value: Any) -> T:
    """The dataclass `cls` out of what its `asdict` gave to JSON.

    Raises TypeError for a field that is missing, unknown or of another type, and what `cls` itself raises for a value.
    """
    if not isinstance(value, dict):
        raise TypeError(f"{cls.__name__} is not described")
    hints = get_type_hints(cls)
    names = {field.name for field in fields(cls)}  # pyright: ignore[reportArgumentType]
    for name in value:
        if name not in names:
            raise TypeError(f"{name} is no setting of {cls.__name__}")
    return cls(**{name: _field(name, hints[name], part) for name, part in value.items()})


def _field(name: str, kind: Any, value: Any) -> Any:
    """`value`, as it came from JSON, as the type `kind`."""
    if is_dataclass(kind):
        return from_json(kind, value)  # pyright: ignore[reportArgumentType]
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind in (int, bool, str) and type(value) is kind:
        return value
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if kind == tuple[str, ...] and isinstance(value, list) and all(isinstance(part, str) for part in value):
        return tuple(value)
    if type(None) in get_args(kind):
        other, _ = get_args(kind)
        if value is None or isinstance(value, get_origin(other) or other):
            return value
    raise TypeError(f"{name} cannot be {json.dumps(value)[:80]}")


def load_detector(path: Path, device: torch.device | str = "cpu") -> tuple[ActionDetector, About]:
    """The detector of a checkpoint of either kind, in evaluation mode on `device`.

    Raises DataError for anything but a whole actdet checkpoint whose tensors fit its own description.
    """
    about = read_about(path)
    _check_shapes(path, about.model)
    tensors, about = read_checkpoint(path)
    detector = ActionDetector(about.model)
    load_weights(detector, tensors, path)
    return detector.eval().to(device), about


def _check_shapes(path: Path, model: ModelConfig) -> None:
    """Raise DataError where the tensors in `path` are not those of a detector of this shape, before one is built."""
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        # Every layer has tensors of its own: more layers than tensors are a wrong number, which could be any.
        for setting in ("encoder_layers", "decoder_layers"):
            if getattr(model, setting) > len(names):
                raise DataError(
                    path,
                    f"a checkpoint of another configuration: it has no {getattr(model, setting)} layers "
                    f"({setting}) in its {len(names)} tensors",
                )
        with torch.device("meta"):
            wanted = ActionDetector(model).state_dict()
        for name, value in wanted.items():
            stored = f"model.{name}"
            _check_shape(path, name, file.get_slice(stored).get_shape() if stored in names else None, value)


def _check_shape(path: Path, name: str, stored: Iterable[int] | None, wanted: Tensor) -> None:
    if stored is None:
        raise DataError(path, f"a checkpoint of another configuration: it has no {name}")
    if tuple(stored) != tuple(wanted.shape):
        raise DataError(
            path,
            f"a checkpoint of another configuration: {name} is {tuple(stored)}, should be {tuple(wanted.shape)}",
        )


def take_tensor(tensors: dict[str, Tensor], stored: str, name: str, wanted: Tensor, path: Path) -> Tensor:
    """The tensor `stored` of a checkpoint, for what `wanted` holds now and a message calls `name`.

    Raises DataError where it is missing, or has another shape or kind of numbers, or some that are not finite.
    """
    found = tensors.get(stored)
    _check_shape(path, name, None if found is None else found.shape, wanted)
    assert found is not None
    if found.is_floating_point() != wanted.is_floating_point() or found.is_complex():
        raise DataError(path, f"{name} holds {found.dtype} where numbers of {wanted.dtype} belong")
    if found.is_floating_point() and not found.isfinite().all():
        raise DataError(path, f"the file is damaged or its training failed: {name} holds numbers that are not finite")
    return found


def load_weights(detector: ActionDetector, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy the tensors named `model.*` into `detector`; DataError naming the first that does not fit."""
    own = detector.state_dict()
    detector.load_state_dict(
        {name: take_tensor(tensors, f"model.{name}", name, value, path) for name, value in own.items()}
    )
