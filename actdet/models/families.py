"""The families that there are: where the settings and the network of each one are to be found.

Training, evaluation and prediction name no family. They ask here, by the name that a configuration and a checkpoint
carry. Nothing is imported before it is asked for, so that the command line can show a family's options without PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from actdet.models.ablation import AblationTable
from actdet.models.config import FamilyConfig, LossSettings

if TYPE_CHECKING:
    from actdet.models.family import FamilyNetwork


class FamilyParts(NamedTuple):
    """The classes of a family, each as MODULE:CLASS."""

    config: str
    """The settings of the network, a `FamilyConfig`."""
    loss: str
    """The settings of the losses, a `LossSettings`."""
    network: str
    """The network, a `FamilyNetwork`, which is built from a config."""
    ablation: str | None = None
    """The ablations of its paper, `AblationTable`s by their numbers, if `actdet ablate` can repeat them."""


FAMILIES = {
    "detr": FamilyParts(
        config="actdet.models.detr.config:ModelConfig",
        loss="actdet.models.detr.config:LossConfig",
        network="actdet.models.detr.detector:ActionDetector",
        ablation="actdet.models.detr.ablation:TABLES",
    ),
    "tubelet": FamilyParts(
        config="actdet.models.tubelet.config:TubeletConfig",
        loss="actdet.models.tubelet.config:TubeletLoss",
        network="actdet.models.tubelet.detector:TubeletDetector",
    ),
    "stma": FamilyParts(
        config="actdet.models.stma.config:StmaConfig",
        loss="actdet.models.stma.config:StmaLoss",
        network="actdet.models.stma.detector:StmaDetector",
        ablation="actdet.models.stma.ablation:TABLES",
    ),
}


def config_class(family: str) -> type[FamilyConfig]:
    """Return the class of a family's network settings, by its name in `FAMILIES`."""
    return _load(FAMILIES[family].config)


def loss_class(family: str) -> type[LossSettings]:
    """Return the class of a family's loss settings, by its name in `FAMILIES`."""
    return _load(FAMILIES[family].loss)


def ablation_tables(family: str) -> Mapping[int, AblationTable]:
    """Return the ablations of a family's paper by the numbers of the tables; none if it has none."""
    part = FAMILIES[family].ablation
    return {} if part is None else _load(part)


def build_network(config: FamilyConfig) -> FamilyNetwork:
    """Build the network of these settings, with the weights from which a training from scratch starts."""
    return _load(FAMILIES[config.family].network)(config)


def _load(part: str) -> Any:
    module, _, name = part.partition(":")
    return getattr(import_module(module), name)
