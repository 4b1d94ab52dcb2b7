"""Checkpoints: one safetensors file of named tensors, whose header describes them as JSON.

Nothing in such a file can be executed. There are two kinds: "weights" holds a trained network and everything that
prediction needs to know about it, and "training" also holds the state from which its training goes on.

The header has the number of its format. Format 2 names the model's family. Format 1 knew only one family, and is still
read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from actdet.bounds import check_bounds
from actdet.errors import ActdetError, DataError
from actdet.files import to_json, write_bytes
from actdet.models.config import FamilyConfig, LossSettings
from actdet.models.families import FAMILIES, build_network, config_class, loss_class
from actdet.models.family import FamilyNetwork

FORMAT = 2

_KEY = "actdet"

T = TypeVar("T")


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says about itself."""

    model: FamilyConfig
    """The configuration of the network, which names its family and the classes."""
    reader: str
    """The reader that decoded the training clips: pyav, dali-cpu or dali-gpu."""
    clip_seconds: float
    """Median duration of the training clips, which is the length of the window that prediction slides over a video."""
    loss: LossSettings
    """The settings of the losses in training, which the rule that decides may need."""
    held_out: tuple[str, ...] = ()
    """Names of the clips that the training run held out for evaluation."""
    training: dict[str, Any] | None = None
    """The state of the training run (settings, data, step); None if the run cannot go on from this checkpoint."""
    window: float = 0.0
    """The seconds of the windows into which untrimmed training videos were cut; 0 if they stayed whole."""

    @property
    def family(self) -> str:
        """The family of the network, by its name in `actdet.models.families`."""
        return self.model.family


def save_checkpoint(path: Path, tensors: dict[str, Tensor], info: CheckpointInfo) -> None:
    """Write a checkpoint, all of it or nothing.

    Raises:
        DataError: If the disk refuses, or if a number in `info` is not finite.
    """
    header = to_json(path, {"format": FORMAT, "family": info.model.family, **asdict(info)})
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(contiguous, metadata={_KEY: header}))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], CheckpointInfo]:
    """Read the tensors, onto the CPU, and the description.

    Raises:
        DataError: If the file is not a whole actdet checkpoint.
    """
    info = read_info(path)
    try:
        return safetensors.torch.load_file(path), info
    except (SafetensorError, OSError) as error:
        raise DataError(path, f"the checkpoint cannot be read: {error}") from error


def read_info(path: Path) -> CheckpointInfo:
    """Read the description alone, without the tensors.

    Raises:
        DataError: If the file is not a whole actdet checkpoint.
    """
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
        return _info_from(path, json.loads(metadata[_KEY]))
    except DataError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ActdetError) as error:
        raise DataError(path, f"its description cannot be read: {error}") from error


def _info_from(path: Path, header: Any) -> CheckpointInfo:
    """The description in the header of `path`.

    Raises:
        DataError: If the format or the family is unknown.
        Exception: Of one of the kinds that `read_info` catches, if anything else is wrong.
    """
    version = header.pop("format")
    if version == 1:
        if "family" in header:
            raise ValueError("a checkpoint of format 1 has no family")
        header["family"] = "detr"
    elif version != FORMAT:
        raise DataError(path, f"written by another version of actdet: this one reads checkpoint formats 1 to {FORMAT}")

    family = header.pop("family")
    # A damaged header may have anything here, even what is not hashable.
    if family not in list(FAMILIES):
        raise DataError(
            path, f"holds a model of the family {str(family)[:80]!r}; this version of actdet has {', '.join(FAMILIES)}"
        )

    # Checkpoints of the first versions do not mention losses, which were at their defaults.
    header.setdefault("loss", {})
    info = from_json(CheckpointInfo, header, types_of(family))
    if not 0 < info.clip_seconds < math.inf:
        raise ActdetError(f"clip_seconds must be above 0, got {info.clip_seconds}")
    check_bounds({"window": info.window})
    return info


def types_of(family: str) -> dict[str, type]:
    """Return the classes of the settings that each family has its own of, by the name of the field that holds them."""
    return {"model": config_class(family), "loss": loss_class(family)}


def from_json(cls: type[T], value: Any, types: Mapping[str, type] | None = None) -> T:
    """Build the dataclass `cls` from what JSON made of its `asdict`.

    Args:
        cls: The class.
        value: A dictionary.
        types: The classes of fields whose annotation says less, by name.

    Raises:
        TypeError: If a field is missing, unknown or of another type.
        Exception: Whatever `cls` raises for a value.
    """
    if not isinstance(value, dict):
        raise TypeError(f"{cls.__name__} is not described")
    hints = get_type_hints(cls) | dict(types or {})
    names = {field.name for field in fields(cls)}  # pyright: ignore[reportArgumentType]
    for name in value:
        if name not in names:
            raise TypeError(f"{name} is no setting of {cls.__name__}")
    return cls(**{name: _field(name, hints[name], part) for name, part in value.items()})


def _field(name: str, kind: Any, value: Any) -> Any:
    """Turn `value`, as JSON gave it, into the type `kind` of the field `name`."""
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


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[FamilyNetwork, CheckpointInfo]:
    """Load the network of a checkpoint of either kind, in evaluation mode.

    Args:
        path: The checkpoint.
        device: Where the network is to be.

    Raises:
        DataError: If the file is not a whole actdet checkpoint, or its tensors do not fit its own description.
    """
    info = read_info(path)
    _check_shapes(path, info.model)
    tensors, info = read_checkpoint(path)
    network = build_network(info.model)
    load_weights(network, tensors, path)
    return network.eval().to(device), info


def _check_shapes(path: Path, model: FamilyConfig) -> None:
    """Raise DataError if `path` lacks a tensor of a network of this shape; nothing of that size is built."""
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        # Every layer has tensors of its own. More layers than tensors are a wrong number, and it could be any number.
        for setting, count in asdict(model).items():
            if setting.endswith("_layers") and count > len(names):
                raise DataError(
                    path,
                    f"a checkpoint of another configuration: it has no {count} layers "
                    f"({setting}) in its {len(names)} tensors",
                )

        # Tensors of the device "meta" have a shape and take no memory.
        with torch.device("meta"):
            wanted = build_network(model).state_dict()
        for name, value in wanted.items():
            stored = f"model.{name}"
            shape = file.get_slice(stored).get_shape() if stored in names else None
            _check_shape(path, name, shape, value)


def _check_shape(path: Path, name: str, stored: Iterable[int] | None, wanted: Tensor) -> None:
    """Raise DataError unless the stored shape of the tensor `name` is that of `wanted`; None means it is missing."""
    if stored is None:
        raise DataError(path, f"a checkpoint of another configuration: it has no {name}")
    if tuple(stored) != tuple(wanted.shape):
        raise DataError(
            path,
            f"a checkpoint of another configuration: {name} is {tuple(stored)}, should be {tuple(wanted.shape)}",
        )


def take_tensor(tensors: dict[str, Tensor], stored: str, name: str, wanted: Tensor, path: Path) -> Tensor:
    """Take a tensor out of those of a checkpoint.

    Args:
        tensors: The tensors of the checkpoint.
        stored: The name of the tensor among them.
        name: What error messages call it.
        wanted: The tensor whose place it is to take.
        path: The file of the checkpoint.

    Raises:
        DataError: If it is missing, has another shape or kind of numbers, or numbers that are not finite.
    """
    found = tensors.get(stored)
    _check_shape(path, name, None if found is None else found.shape, wanted)
    assert found is not None
    if found.is_floating_point() != wanted.is_floating_point() or found.is_complex():
        raise DataError(path, f"{name} holds {found.dtype} where numbers of {wanted.dtype} belong")
    if found.is_floating_point() and not found.isfinite().all():
        raise DataError(path, f"the file is damaged or its training failed: {name} holds numbers that are not finite")
    return found


def load_weights(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy the tensors named `model.*` of the checkpoint `path` into `network`.

    Raises:
        DataError: If one of them does not fit; the network is then as it was.
    """
    own = network.state_dict()
    network.load_state_dict(
        {name: take_tensor(tensors, f"model.{name}", name, value, path) for name, value in own.items()}
    )
