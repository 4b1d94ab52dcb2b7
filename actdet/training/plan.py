"""The plan of a training: every choice that depends on the machine or the clips, made once, each with its reason.

`make_plan` chooses. Whoever opens the clips, trains, estimates or reports reads the plan and chooses nothing again; the
first line that `actdet train` prints is `Plan.describe`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from actdet_kernels import explain_backend
from torch import nn

from actdet.data.cache import choose_cache
from actdet.data.clips import Clip, ClipIndex
from actdet.data.config import ClipSize
from actdet.data.truth import TruthKind, actors_of
from actdet.device import choose_precision, choose_step, device_name
from actdet.distributed import ALONE, Processes
from actdet.errors import ActdetError
from actdet.models.backbones.convolution import FactorizedConv
from actdet.models.config import FamilyConfig
from actdet.models.families import build_network, loss_class
from actdet.models.family import FamilyNetwork
from actdet.training.config import TrainConfig
from actdet.training.convolution_form import choose_convolutions
from actdet.video.readers import choose_reader
from actdet.wording import counted

T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    """What was chosen, and why in a few words."""

    value: T
    reason: str


@dataclass(frozen=True)
class Plan:
    """The settings of a training and what they come to on this machine."""

    model: FamilyConfig
    """The detector's settings."""
    config: TrainConfig
    """The training's settings, as asked for: an `auto` in it is decided below."""
    truth: TruthKind
    """What the detector learns from."""
    processes: Processes
    """The processes that train together."""
    device: torch.device
    """Where the network runs: what the user asked for, or else the first GPU, or else the CPU."""
    dtype: Choice[torch.dtype]
    """The network's arithmetic."""
    launch: Choice[str]
    """How a step is launched: graph, eager or compile."""
    reader: Choice[str]
    """What decodes the clips: pyav, dali-cpu or dali-gpu."""
    cache: Choice[bool]
    """Whether decoded clips are kept in the device's memory."""
    flat: Choice[bool]
    """Whether factorized convolutions are computed in two dimensions instead of three; no reason if there are none."""
    matching: Choice[str]
    """What computes matching and loss: triton, cpu or reference. Every operation of the kernels chooses by this same
    rule."""

    @property
    def clip_size(self) -> ClipSize:
        """How much of a clip the network sees."""
        return _clip_size(self.model)

    def describe(self) -> str:
        """Say in one line which paths the training takes on this machine, and why."""
        count = self.processes.count
        several = f"{count} processes, each " if count > 1 else ""
        convolutions = f"{2 if self.flat.value else 3}-D convolutions ({self.flat.reason})"
        return "; ".join(
            [
                f"{several}{device_name(self.device)}",
                f"{str(self.dtype.value).removeprefix('torch.')} ({self.dtype.reason})",
                f"step {self.launch.value} ({self.launch.reason})",
                *([convolutions] if self.flat.reason else []),
                f"reader {self.reader.value} ({self.reader.reason})",
                self.cache.reason,
                f"matching and loss by {self.matching.value}: {self.matching.reason}",
            ]
        )


def make_plan(
    index: ClipIndex,
    model: FamilyConfig,
    config: TrainConfig,
    device: torch.device,
    processes: Processes = ALONE,
) -> Plan:
    """Make every choice that a training on the clips of `index` needs.

    Args:
        index: All clips of the data set, those that are held out included.
        model: The detector's settings.
        config: The training's settings.
        device: Where the network is to run, as `actdet.device.choose_device` gives it.
        processes: The processes that train together.

    Returns:
        The plan. On a GPU, making it takes seconds (`choose_convolutions`).

    Raises:
        ActdetError: If a clip has more annotations than the detector has queries, if a setting is not for detectors of
            this family, or if something was asked for by name that this machine cannot do.
    """
    # A network on the device "meta" has all modules and takes no memory.
    with torch.device("meta"):
        network = build_network(model)
        auxiliary_head = network.auxiliary_head()
    _check_options(network, auxiliary_head, config)
    _check_actions(index, model, network.truth)
    dtype, dtype_reason = choose_precision(config.precision, device)
    launch, launch_reason = choose_step(
        config.step, device, processes=processes.count, checkpointing=config.checkpointing
    )

    videos = [clip.video for clip in index.clips]
    reader, reader_reason = choose_reader(config.reader, device, videos, disk_cache=config.disk_cache > 0)
    kept, cache_reason = choose_cache(
        config.cache,
        index,
        _clip_size(model),
        device,
        jitter=config.augment.jitter,
        epochs=config.epochs,
        processes=processes.count,
    )

    # The measurement takes memory for a while, so it comes after the choice that counts the free memory.
    # The first process has the largest share of a batch.
    flat, flat_reason = True, ""
    if any(isinstance(module, FactorizedConv) for module in network.modules()):
        flat, flat_reason = choose_convolutions(model, -(-config.batch_size // processes.count), device, dtype)
    matching, _, matching_reason = explain_backend(device).partition(": ")
    return Plan(
        model=model,
        config=config,
        truth=network.truth,
        processes=processes,
        device=device,
        dtype=Choice(dtype, dtype_reason),
        launch=Choice(launch, launch_reason),
        reader=Choice(reader, reader_reason),
        cache=Choice(kept, cache_reason),
        flat=Choice(flat, flat_reason),
        matching=Choice(matching, matching_reason),
    )


def _check_options(network: FamilyNetwork, auxiliary_head: nn.Module | None, config: TrainConfig) -> None:
    """Raise ActdetError if a setting is for networks of another family, or for other backbones."""
    family = network.config.family
    wanted = loss_class(family)
    if not isinstance(config.loss, wanted):
        given = type(config.loss).__name__
        raise ActdetError(f"the family {family} needs {wanted.__name__} for its losses, got {given}")

    if config.auxiliary_weight and auxiliary_head is None:
        raise ActdetError(f"the family {family} has no auxiliary loss: leave out auxiliary_weight")

    # What a backbone can do it says by its attributes (`FamilyNetwork.backbone`).
    backbone = network.backbone
    of_other = f"is not for {_backbone_name(network)}"
    takes_weights = config.init is None and config.backbone_weights != "none"
    if takes_weights and not hasattr(backbone, "load_weights"):
        raise ActdetError(f"backbone_weights {config.backbone_weights} {of_other}: set backbone_weights to none")
    for option, attribute in (("shallow_epochs", "shallow"), ("checkpointing", "checkpointing")):
        if getattr(config, option) and not hasattr(backbone, attribute):
            raise ActdetError(f"{option} {of_other}: leave it out")


def _backbone_name(network: FamilyNetwork) -> str:
    """Return what error messages call the backbone."""
    name = getattr(network.config, "backbone", None)
    return f"the backbone of the family {network.config.family}" if name is None else f"the backbone {name}"


def _check_actions(index: ClipIndex, model: FamilyConfig, truth: TruthKind) -> None:
    """Raise ActdetError if a clip has more annotations than the network can learn from."""
    if not index.clips:
        return

    def actions(clip: Clip) -> int:
        if truth == "actor":
            return len(actors_of(clip.tubes))
        return len(clip.tubes if truth == "tubelet" else clip.annotations)

    fullest = max(index.clips, key=actions)
    annotations = actions(fullest)
    most = model.max_actions()
    if most is None or annotations <= most:
        return
    problem = f"clip {fullest.name} has {annotations} annotations"
    for option, one in (("queries", "query"), ("slots", "slot")):
        if hasattr(model, option):
            advice = f"use --{option} {annotations} or more"
            raise ActdetError(f"{problem}, more than the {counted(most, one, option)} of the model: {advice}")
    raise ActdetError(f"{problem}, and a detector of the family {model.family} learns from {most} at most")


def _clip_size(model: FamilyConfig) -> ClipSize:
    return ClipSize(model.frames, model.image_size)
