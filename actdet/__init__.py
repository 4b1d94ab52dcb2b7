"""actdet: set prediction for video action detection.

from actdet import Predictor

for window in Predictor("runs/demo/model.safetensors").windows("video.mp4"):
    print(window.start, window.end, window.action, window.score, window.box)

The names below are imported when they are first used: the processes that only decode or render videos start without
the network and the metrics.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actdet.checkpoints import load_detector
    from actdet.config import AugmentConfig, LossConfig, ModelConfig, TrainConfig
    from actdet.data.index import load_index
    from actdet.errors import ActdetError, DataError
    from actdet.metrics import Metrics, measure
    from actdet.models import ActionDetector, Predictions
    from actdet.models.decision import Action, Decision, actions, decide
    from actdet.prediction import Predictor, Window

__all__ = [
    "ActdetError",
    "Action",
    "ActionDetector",
    "AugmentConfig",
    "DataError",
    "Decision",
    "LossConfig",
    "Metrics",
    "ModelConfig",
    "Predictions",
    "Predictor",
    "TrainConfig",
    "Window",
    "actions",
    "decide",
    "load_detector",
    "load_index",
    "measure",
]

_MODULES = {
    "checkpoints": ["load_detector"],
    "config": ["AugmentConfig", "LossConfig", "ModelConfig", "TrainConfig"],
    "data.index": ["load_index"],
    "errors": ["ActdetError", "DataError"],
    "metrics": ["Metrics", "measure"],
    "models": ["ActionDetector", "Predictions"],
    "models.decision": ["Action", "Decision", "actions", "decide"],
    "prediction": ["Predictor", "Window"],
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"actdet.{module}"), name)
    raise AttributeError(f"module 'actdet' has no attribute {name!r}")
