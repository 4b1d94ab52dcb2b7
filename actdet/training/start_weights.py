"""The weights from which a training starts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from actdet.errors import DataError
from actdet.models.backbones.r2plus1d import load_backbone_weights
from actdet.models.checkpoints import load_model
from actdet.models.detr.detector import ActionDetector
from actdet.training.config import TrainConfig

# Settings of a detector that belong to its training, not to its weights.
_OF_TRAINING = ("dropout", "deep_supervision")


def load_start_weights(detector: ActionDetector, config: TrainConfig) -> None:
    """Fill a new detector with what `config` says: another detector's weights, those of a backbone, or neither.

    Raises:
        ActdetError: If the weights cannot be had.
        DataError: If they belong to another detector.
    """
    if config.init is None:
        load_backbone_weights(detector.backbone, config.backbone_weights)
        return

    path = Path(config.init)
    found, info = load_model(path)
    for name, value in asdict(detector.config).items():
        stored = getattr(info.model, name)
        if name not in _OF_TRAINING and value != stored:
            raise DataError(path, f"a detector of another configuration: {name} is {stored}, asked for is {value}")
    detector.load_state_dict(found.state_dict())
