"""actdet: set prediction for video action detection.

    from actdet import Predictor

    for window in Predictor("runs/demo/model.safetensors").windows("video.mp4"):
        print(window.start, window.end, window.action, window.score, window.box)

`dir(actdet)` lists all public names; the folder examples/ shows them at work. Each name is imported when it is first
used, so that processes that only decode or render videos start without the network and the metrics.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actdet.api import evaluate, load_dataset, load_model, train
    from actdet.data.clips import ClipIndex
    from actdet.data.config import AugmentConfig
    from actdet.detections import Action, Tube
    from actdet.errors import ActdetError, DataError
    from actdet.evaluation.clips import Evaluation
    from actdet.evaluation.metrics import Metrics, measure
    from actdet.models.detr.assessment import assess
    from actdet.models.detr.config import LossConfig, ModelConfig
    from actdet.models.detr.decision import actions, decide
    from actdet.models.detr.detector import ActionDetector, Predictions
    from actdet.models.family import Decision
    from actdet.models.tubelet.config import TubeletConfig, TubeletLoss
    from actdet.prediction.predictor import FoundAction, Gap, Predictor, Window
    from actdet.training.config import TrainConfig

    __version__: str

__all__ = [
    "ActdetError",
    "Action",
    "ActionDetector",
    "AugmentConfig",
    "ClipIndex",
    "DataError",
    "Decision",
    "Evaluation",
    "FoundAction",
    "Gap",
    "LossConfig",
    "Metrics",
    "ModelConfig",
    "Predictions",
    "Predictor",
    "TrainConfig",
    "Tube",
    "TubeletConfig",
    "TubeletLoss",
    "Window",
    "__version__",
    "actions",
    "assess",
    "decide",
    "evaluate",
    "load_dataset",
    "load_model",
    "measure",
    "train",
]

# The module of each name.
_HOMES = {
    "api": ["evaluate", "load_dataset", "load_model", "train"],
    "data.config": ["AugmentConfig"],
    "data.clips": ["ClipIndex"],
    "detections": ["Action", "Tube"],
    "errors": ["ActdetError", "DataError"],
    "evaluation.clips": ["Evaluation"],
    "evaluation.metrics": ["Metrics", "measure"],
    "models.detr.config": ["LossConfig", "ModelConfig"],
    "models.detr.assessment": ["assess"],
    "models.detr.decision": ["actions", "decide"],
    "models.detr.detector": ["ActionDetector", "Predictions"],
    "models.family": ["Decision"],
    "models.tubelet.config": ["TubeletConfig", "TubeletLoss"],
    "prediction.predictor": ["FoundAction", "Gap", "Predictor", "Window"],
    "training.config": ["TrainConfig"],
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name == "__version__":
        from importlib.metadata import version

        return version("actdet")
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"actdet.{module}"), name)
    raise AttributeError(f"module 'actdet' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, whether they have been imported yet or not."""
    return list(__all__)
