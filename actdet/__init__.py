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
    from actdet.data.config import AugmentConfig
    from actdet.data.index import load_index
    from actdet.errors import ActdetError, DataError
    from actdet.evaluation.metrics import Metrics, measure
    from actdet.models.checkpoints import load_detector
    from actdet.models.detr.config import LossConfig, ModelConfig
    from actdet.models.detr.decision import Action, Decision, actions, decide
    from actdet.models.detr.detector import ActionDetector, Predictions
    from actdet.prediction.predictor import Predictor, Window
    from actdet.training.config import TrainConfig

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
    "models.checkpoints": ["load_detector"],
    "data.config": ["AugmentConfig"],
    "data.index": ["load_index"],
    "errors": ["ActdetError", "DataError"],
    "evaluation.metrics": ["Metrics", "measure"],
    "models.detr.config": ["LossConfig", "ModelConfig"],
    "models.detr.detector": ["ActionDetector", "Predictions"],
    "training.config": ["TrainConfig"],
    "models.detr.decision": ["Action", "Decision", "actions", "decide"],
    "prediction.predictor": ["Predictor", "Window"],
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"actdet.{module}"), name)
    raise AttributeError(f"module 'actdet' has no attribute {name!r}")
