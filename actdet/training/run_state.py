"""The stored state of a run: which files hold it, what it must contain, and how a step is stored and restored.

last.safetensors        the state to go on from, written every few minutes and when the run is stopped
best.safetensors        the detector as it was at the best evaluation, if clips are held out
model.safetensors       the trained detector, written at the end, from which a missing evaluation can be made
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actdet.data.clips import ClipIndex
from actdet.errors import ActdetError, DataError
from actdet.models.checkpoints import CheckpointInfo, from_json, read_info, take_tensor, types_of
from actdet.models.config import FamilyConfig
from actdet.models.families import config_class, loss_class
from actdet.training.config import TrainConfig
from actdet.training.plan import Plan
from actdet.training.train_step import TrainStep

MODEL = "model.safetensors"
LAST = "last.safetensors"
BEST = "best.safetensors"

# Settings that change no result of the clips that can be read. A resumed run may have others.
LAUNCH = ("step", "checkpointing", "workers", "cache", "disk_cache", "bad_files")

# What earlier versions called a setting of the augmentation, and what it is called now.
_RENAMED = {"colour": "color"}

# The auxiliary head's name in the files. Runs of earlier versions have it, so it stays.
_STORED_HEAD = "clip_head"


@dataclass(frozen=True)
class StoredRun:
    """What the state in a run's folder says of the run, so that it can go on with nothing else but the data."""

    model: FamilyConfig
    config: TrainConfig
    training_clips: tuple[str, ...]
    """Names of the clips that it trains on, in their order."""
    held_out_clips: tuple[str, ...]
    """Names of the clips that it is evaluated on, in their order."""
    unused_clips: tuple[str, ...]
    """Names of the data set's other clips, such as those that are kept for a test."""


def read_run(out: Path) -> StoredRun:
    """Return what the run in the folder `out` is.

    Raises:
        DataError: If there is no state to go on from, or none that can be read.
    """
    path = state_path(out)
    info = read_info(path)
    state = check_state(path, info)
    try:
        return StoredRun(
            from_json(config_class(info.family), state["model"]),
            from_json(TrainConfig, state["settings"] | state["launch"], types_of(info.family)),
            tuple(state["training_clips"]),
            tuple(state["held_out_clips"]),
            tuple(state["unused_clips"]),
        )
    except (TypeError, ActdetError) as error:
        raise DataError(path, f"its description cannot be read: {error}") from error


def state_path(out: Path) -> Path:
    """Return the file in the folder `out` from which its run goes on.

    Raises:
        DataError: If there is none.
    """
    # The trained detector comes first: it was written at the end, so only its evaluation and report may be missing.
    for name in (MODEL, LAST):
        if (out / name).exists():
            return out / name
    raise DataError(out, "nothing to resume: the folder contains no training state; start the run without --resume")


def check_state(path: Path, info: CheckpointInfo) -> dict[str, Any]:
    """Check the state of a run that a checkpoint describes.

    Args:
        path: The checkpoint, for messages.
        info: Its description.

    Returns:
        The state by name, with what earlier versions left out or called otherwise filled in.

    Raises:
        DataError: If it describes no run, or one that cannot be.
    """
    if info.training is None:
        raise DataError(path, "holds a trained detector, not the state of a training")

    state: dict[str, Any] = {"left_out": {}, "launch": {}, "best": None, "unused_clips": [], **info.training}
    for name, holds in _STATE.items():
        if name not in state or not holds(state[name]):
            raise DataError(path, f"its description cannot be read: {name} of its training is missing or wrong")

    state["settings"] = current_names(state["settings"])
    return state


def current_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Return stored settings of a training by the names that they have now."""
    augment = settings.get("augment")
    if not isinstance(augment, dict):
        return settings
    return settings | {"augment": {_RENAMED.get(name, name): value for name, value in augment.items()}}


def run_identity(plan: Plan, index: ClipIndex, train_ids: Sequence[int], val_ids: Sequence[int]) -> dict[str, Any]:
    """Return what makes a run the run that it is: its settings and its clips.

    Args:
        plan: The plan of the run.
        index: The data set.
        train_ids: The clips to train on, by their numbers in the index.
        val_ids: The clips to evaluate on, likewise.

    Returns:
        `model` and `settings`, the settings by name without those of `LAUNCH`, and `training_clips`, `held_out_clips`
        and `unused_clips`, names of clips.
    """
    names = [clip.name for clip in index.clips]
    used = {*train_ids, *val_ids}
    return {
        "model": asdict(plan.model),
        "settings": {name: value for name, value in asdict(plan.config).items() if name not in LAUNCH},
        "training_clips": [names[i] for i in train_ids],
        "held_out_clips": [names[i] for i in val_ids],
        "unused_clips": [name for i, name in enumerate(names) if i not in used],
    }


def check_same_run(path: Path, info: CheckpointInfo, plan: Plan, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Check that a stored state is of the run that is to go on from it.

    Args:
        path: The checkpoint, for messages.
        info: Its description.
        plan: The plan of the run.
        identity: What `run_identity` returns for that run.

    Returns:
        The state, as `check_state` returns it.

    Raises:
        DataError: If the state is none, or has other settings or clips.
    """
    state = check_state(path, info)
    family = plan.model.family
    if info.family != family:
        raise DataError(path, f"a checkpoint of another configuration: family was {info.family}, is now {family}")

    current = json.loads(json.dumps(identity))
    # A setting that came after the checkpoint had been written was what is the default now.
    defaults = json.loads(
        json.dumps(
            {
                "model": asdict(config_class(family)()),
                "settings": asdict(TrainConfig(loss=loss_class(family)())),
            }
        )
    )
    for group in ("model", "settings"):
        before = defaults[group] | state[group]
        for setting, value in current[group].items():
            if before[setting] != value:
                raise DataError(
                    path, f"a checkpoint of another configuration: {setting} was {before[setting]}, is now {value}"
                )
    for clips in ("training_clips", "held_out_clips", "unused_clips"):
        if state[clips] != current[clips]:
            problem = f"a checkpoint of other {clips.replace('_', ' ')}"
            raise DataError(path, f"{problem}: the data set has changed, or the groups, lists or share that divide it")
    return state


def step_tensors(step: TrainStep) -> dict[str, Tensor]:
    """Return by their stored names the tensors that only training needs, all but the sums of the losses."""
    tensors: dict[str, Tensor] = {}
    for number, parameter in enumerate(step.parameters):
        state = step.optimizer.state.get(parameter, {})
        tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    if step.auxiliary_head is not None:
        tensors |= {f"{_STORED_HEAD}.{name}": value for name, value in step.auxiliary_head.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in step.average.items()}
    return tensors


def restore_step(step: TrainStep, tensors: dict[str, Tensor], scaler: dict[str, Any], path: Path) -> None:
    """Fill a step with what only training needs.

    Args:
        step: A new step of the same detector and settings.
        tensors: Those of the checkpoint, by their stored names.
        scaler: The state of the loss scaler; empty if the run was not in float16.
        path: The checkpoint, for messages.

    Raises:
        DataError: If a tensor is missing or does not fit.
    """

    def take(name: str, wanted: Tensor) -> Tensor:
        return take_tensor(tensors, name, name, wanted, path)

    if step.auxiliary_head is not None:
        head = step.auxiliary_head.state_dict()
        step.auxiliary_head.load_state_dict(
            {name: take(f"{_STORED_HEAD}.{name}", value) for name, value in head.items()}
        )
    for name, value in step.average.items():
        value.copy_(take(f"average.{name}", value))

    for number, parameter in enumerate(step.parameters):
        # A run that was saved before its first step has no state of the optimizer.
        if f"optimizer.{number}.step" not in tensors:
            continue
        count = take(f"optimizer.{number}.step", torch.zeros(()))
        step.optimizer.state[parameter] = {"step": count.to(step.device)}
        for average in ("exp_avg", "exp_avg_sq"):
            # Fused AdamW walks memory, not indices, so its averages must lie as the parameter does (channels last).
            value = torch.empty_like(parameter).copy_(take(f"optimizer.{number}.{average}", parameter))
            step.optimizer.state[parameter][average] = value

    step.losses.copy_(take("losses", step.losses))
    if scaler:
        if step.scaler.is_enabled() and scaler.keys() != step.scaler.state_dict().keys():
            raise DataError(path, "its description cannot be read: scaler of its training is wrong")
        step.scaler.load_state_dict(scaler)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_left_out(value: Any) -> bool:
    """Whether it says of each clip which file is bad, what is wrong with it, and in which line, if in one."""
    return isinstance(value, dict) and all(
        isinstance(error, list)
        and len(error) == 3
        and _are_texts(error[:2])
        and (error[2] is None or _is_count(error[2]))
        for error in value.values()
    )


# What the state of a run must have, and what each part of it must be.
_STATE: dict[str, Callable[[Any], bool]] = {
    "step": _is_count,
    "summed": _is_count,
    "model": _is_dict,
    "settings": _is_dict,
    "launch": _is_dict,
    "training_clips": _are_texts,
    "held_out_clips": _are_texts,
    "unused_clips": _are_texts,
    "left_out": _is_left_out,
    "scaler": lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
    "best": lambda value: value is None or _are_numbers(value),
}
