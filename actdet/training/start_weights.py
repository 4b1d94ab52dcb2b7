"""The weights from which a training starts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from actdet.errors import DataError
from actdet.models.checkpoints import load_model
from actdet.models.family import FamilyNetwork
from actdet.training.config import TrainConfig


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
        if name not in detector.config.of_training and value != stored:
            raise DataError(path, f"a detector of another configuration: {name} is {stored}, asked for is {value}")
    detector.load_state_dict(found.state_dict())
