"""The network: backbone and detector. Tensors in, tensors out; no files but those of weights."""

from actdet.models.backbone import load_backbone_weights
from actdet.models.detector import ActionDetector, Predictions

__all__ = ["ActionDetector", "Predictions", "load_backbone_weights"]
