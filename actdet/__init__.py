"""actdet: set prediction for video action detection.

from actdet import Predictor

for window in Predictor("runs/demo/model.safetensors").windows("video.mp4"):
    print(window.start, window.end, window.action, window.score, window.box)
"""

from actdet.checkpoints import load_detector
from actdet.config import AugmentConfig, LossConfig, ModelConfig, TrainConfig
from actdet.data.index import load_index
from actdet.errors import ActdetError, DataError
from actdet.metrics import Metrics, measure
from actdet.models import ActionDetector, Predictions
from actdet.models.decision import Decision, decide
from actdet.prediction import Predictor, Window

__all__ = [
    "ActdetError",
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
    "decide",
    "load_detector",
    "load_index",
    "measure",
]
