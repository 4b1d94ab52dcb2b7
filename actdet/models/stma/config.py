"""The settings of STMA, and of the losses that train it.

The command line shows them, with the text under a field as its help, and a checkpoint records them. Defaults are those
of the paper (Zhang and Zhao 2022) if it prints a value, but for the backbones, which here are small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from actdet.bounds import check
from actdet.models.config import FamilyConfig, LossSettings

# What sees each frame by itself, and what sees the clip.
PictureBackbone = Literal["efficientnet-lite0", "resnet-18", "dla-34", "dla-34-plain"]
ClipBackbone = Literal["efficientnet-lite0", "r2plus1d-18", "resnext-101"]


@dataclass(frozen=True)
class StmaConfig(FamilyConfig):
    """The shape of the detector."""

    family = "stma"

    picture_backbone: PictureBackbone = "efficientnet-lite0"
    """What sees each frame by itself and finds places: EfficientNet-Lite0 or ResNet-18 (weights of ImageNet), or the
    paper's DLA-34, with deformable convolutions or plain ones (weights of COCO, from a file)."""
    clip_backbone: ClipBackbone = "efficientnet-lite0"
    """What sees the whole clip and tells actions apart: EfficientNet-Lite0 with filters in time (ImageNet), R(2+1)D-18
    (Kinetics), or the paper's 3-D ResNeXt-101 (Kinetics, from a file)."""
    snippet: int = 5
    """The neighboring frames of a tubelet, the paper's K. A clip of many frames is covered by several snippets."""
    snippets: Literal["all", "middle", "last"] = "all"
    """Which snippets of a clip are searched: as many as cover it; the middle one alone, as in the paper; or the last
    one alone, for cameras."""
    key: Literal["middle", "last"] = "middle"
    """Which frame of a snippet the centers are found in."""
    class_agnostic: bool = True
    """Find centers whatever the class is, and the class from features of its own (the paper's CAL). Without, there is a
    map of centers for each class, and nothing else tells classes apart."""
    motion_excitation: bool = True
    """Stress the channels in which neighboring frames differ (the paper's ME)."""
    aggregation: bool = True
    """Tell classes by the features of the whole clip, too (the paper's STA). Without, there is no clip backbone."""
    moving_sizes: bool = True
    """Read the sides of a box where its actor is in each frame, so that they are positive, instead of where it is in
    the key frame."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.snippet <= self.frames,
            f"snippet must be at most the {self.frames} frames of a clip, got {self.snippet}",
        )
        for name in ("motion_excitation", "aggregation"):
            check(
                self.class_agnostic or not getattr(self, name),
                f"{name} is for centers whatever the class is: leave class_agnostic on, or turn {name} off, too",
            )
        check(
            self.aggregation or self.clip_backbone == StmaConfig.clip_backbone,
            "clip_backbone is of no use without aggregation: leave it out",
        )


@dataclass(frozen=True)
class StmaLoss(LossSettings):
    """Weights of the loss (eq. 8 and 9 of the paper), and which pixels learn what."""

    cls_weight: float = 0.01
    """Weight of the classification term."""
    center_weight: float = 1.0
    """Weight of the focal loss of the centers."""
    movement_weight: float = 0.5
    """Weight of the L1 distance of the movement."""
    size_weight: float = 0.05
    """Weight of the generalized-IoU loss of the boxes: the paper's 0.5 times 0.1."""
    center_radius: Literal["published", "corrected"] = "published"
    """How wide the target of a center is: as in all published code of this kind, which takes a root without its leading
    coefficient, or with that. On a small grid the right root is often below one pixel."""
    movement_area: Literal["ellipse", "circle", "center"] = "ellipse"
    """Which pixels about a center learn the movement: as in TTFNet, whose ellipse has the box's shape; a circle as wide
    as the target of the center; or the center alone, as in MOC (the paper's GR is any but that)."""
    size_area: Literal["ellipse", "circle", "center"] = "ellipse"
    """Which pixels about a center learn the sides of the box, likewise."""

    def term_weights(self) -> dict[str, float]:
        return {
            "cls": self.cls_weight,
            "center": self.center_weight,
            "movement": self.movement_weight,
            "size": self.size_weight,
        }
