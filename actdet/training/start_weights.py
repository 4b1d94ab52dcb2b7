"""The weights from which a training starts, and whether its options are for the network that it trains."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from actdet.errors import ActdetError, DataError
from actdet.models.checkpoints import load_model
from actdet.models.family import FamilyNetwork
from actdet.training.config import TrainConfig

# Settings of a detector that belong to its training, not to its weights.
_OF_TRAINING = ("dropout", "deep_supervision")


def check_options(detector: FamilyNetwork, config: TrainConfig) -> None:
    """Check that a training has only options that its network's backbone has a use for.

    Raises:
        ActdetError: If an option needs something that the backbone has not (see `FamilyNetwork.backbone`).
    """
    backbone = detector.backbone
    of_other = f"is not for the backbone of the family {detector.config.family}"
    takes_weights = config.init is None and config.backbone_weights != "none"
    if takes_weights and not hasattr(backbone, "load_weights"):
        raise ActdetError(f"backbone_weights {config.backbone_weights} {of_other}: set backbone_weights to none")
    for option, attribute in (("shallow_epochs", "shallow"), ("checkpointing", "checkpointing")):
        if getattr(config, option) and not hasattr(backbone, attribute):
            raise ActdetError(f"{option} {of_other}: leave it out")


def load_start_weights(detector: FamilyNetwork, config: TrainConfig) -> None:
    """Fill a new detector with what `config` says: another detector's weights, those of a backbone, or neither.

    Raises:
        ActdetError: If the weights cannot be had.
        DataError: If they belong to another detector.
    """
    if config.init is None:
        if hasattr(detector.backbone, "load_weights"):
            detector.backbone.load_weights(config.backbone_weights)
        return

    path = Path(config.init)
    found, info = load_model(path)
    family = detector.config.family
    if info.family != family:
        raise DataError(path, f"a detector of the family {info.family}, asked for is {family}")
    for name, value in asdict(detector.config).items():
        stored = getattr(info.model, name)
        if name not in _OF_TRAINING and value != stored:
            raise DataError(path, f"a detector of another configuration: {name} is {stored}, asked for is {value}")
    detector.load_state_dict(found.state_dict())
