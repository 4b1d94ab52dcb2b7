"""STMA (Zhang and Zhao 2022): tubelets of K neighboring frames, found by the center of the actor in a key frame.

    clip -> two backbones -> for each snippet of K frames: centers, movement, sizes; and with the whole clip: classes

The paper searches one snippet, in the middle of a clip. Here as many as cover the clip share the features of its frames
and of the clip itself, so that one pass answers for every frame.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from actdet.data.truth import TubeTargets
from actdet.detections import THRESHOLD
from actdet.distributed import ALONE, Processes
from actdet.models.family import Assessment, Detections, FamilyNetwork
from actdet.models.stma.classes import ClassHead
from actdet.models.stma.config import StmaConfig, StmaLoss
from actdet.models.stma.decision import assess, detections
from actdet.models.stma.features import WIDTH, ClipFeatures, FrameFeatures, TwoBackbones
from actdet.models.stma.losses import LOSSES, STRIDE, stma_losses
from actdet.models.stma.maps import SnippetMaps, snippet_starts

# The channels inside a head: MOC's for DLA-34, and for ResNet-18.
_HEAD_WIDTHS = {"dla-34": 256, "dla-34-plain": 256, "efficientnet-lite0": 64, "resnet-18": 64}

# Before training, the probability that a center is in a pixel (CenterNet), and how many pixels each side is away.
_FIRST_PROBABILITY = 0.1
_FIRST_SIDE = 2.0

# The stride of the classes' grid if no features of the clip say it.
_CLASS_STRIDE = 16

# The most that the exponent of a side may be; beyond it, sides are larger than any picture.
_LARGEST_EXPONENT = 8.0


class StmaDetector(FamilyNetwork[StmaConfig, SnippetMaps]):
    """Clips (B, 3, T, S, S), normalized as `actdet.data.augment` does, to `SnippetMaps`.

    Args:
        config: The shape of the network.
    """

    truth = "tubelet"
    loss_names = LOSSES
    rule = (
        "An actor is found by the center in the key frame of a few neighboring frames. The score is the probability of "
        "the center times that of the class. Of boxes that overlap, the one of the highest score counts."
    )

    def __init__(self, config: StmaConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or StmaConfig()
        self.starts = snippet_starts(config)
        self.backbone = TwoBackbones(config)
        classes = len(config.class_names)
        inner = _HEAD_WIDTHS[config.picture_backbone]
        snippet = config.snippet

        self.center_head = _head(snippet * WIDTH, inner, 1 if config.class_agnostic else classes)
        self.movement_head = _head(snippet * WIDTH, inner, 2 * snippet)
        self.size_head = _head(WIDTH, inner, 4)
        nn.init.constant_(self.center_head.get_parameter("2.bias"), -math.log(1 / _FIRST_PROBABILITY - 1))
        first_size = math.log(_FIRST_SIDE) if config.moving_sizes else _FIRST_SIDE
        nn.init.constant_(self.size_head.get_parameter("2.bias"), first_size)

        self.class_head = None
        if config.class_agnostic:
            of_clip = self.backbone.clips
            self.class_head = ClassHead(
                WIDTH,
                snippet,
                classes,
                clip_width=of_clip.width if of_clip else 0,
                stride=(of_clip.stride if of_clip else _CLASS_STRIDE) // STRIDE,
                motion_excitation=config.motion_excitation,
            )

    def forward(self, clips: Tensor) -> SnippetMaps:
        size = self.config.image_size
        frames = self.config.frames
        if clips.ndim != 5 or clips.shape[1:] != (3, frames, size, size):
            raise ValueError(f"clips must be (B, 3, {frames}, {size}, {size}), got {tuple(clips.shape)}")
        return self.detect(self.backbone(clips))

    def detect(self, features: ClipFeatures, hints: None = None) -> SnippetMaps:
        """Compute what follows the backbones."""
        pictures = features.pictures
        clips = pictures.shape[0]
        count = len(self.starts)
        frames = self.of_frames(pictures.flatten(0, 1))

        # (B * n, K, ...): frames that two snippets share are in both.
        snippets = FrameFeatures(*(self._snippets(each.unflatten(0, pictures.shape[:2])) for each in frames))
        clip = features.clip
        if clip is not None:
            clip = clip[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)
        maps = self.of_snippets(snippets, clip)
        return SnippetMaps(*(each.unflatten(0, (clips, count)) for each in maps))

    def of_frames(self, pictures: Tensor) -> FrameFeatures:
        """Compute all that depends on single frames alone, from their features (N, 64, H, W)."""
        raw = self.size_head(pictures).float()
        sides = raw.clamp(max=_LARGEST_EXPONENT).exp() if self.config.moving_sizes else raw
        reduced = pictures[:, :0] if self.class_head is None else self.class_head.reduce(pictures)
        return FrameFeatures(pictures, sides, reduced)

    def of_snippets(self, frames: FrameFeatures, clip: Tensor | None) -> SnippetMaps:
        """Compute the maps of N snippets, without the dimension of a clip's snippets.

        Args:
            frames: What `of_frames` says of their K frames, (N, K, ...).
            clip: (N, C, h, w), what the backbone of clips says of the clip that each snippet is from, if there is one.
        """
        # The frames of a snippet side by side.
        seen = frames.pictures.flatten(1, 2)
        centers = self.center_head(seen).float()
        movement = self.movement_head(seen).float().unflatten(1, (self.config.snippet, 2))
        if self.class_head is None:
            logits = torch.zeros_like(centers[:, :1, :1, :1])
        else:
            logits = self.class_head(frames.reduced, clip).float()
        return SnippetMaps(centers, movement, frames.sides, logits)

    def _snippets(self, frames: Tensor) -> Tensor:
        """(B, T, ...) to (B * n, K, ...)."""
        return torch.stack([frames[:, start : start + self.config.snippet] for start in self.starts], 1).flatten(0, 1)

    def losses(
        self,
        outputs: SnippetMaps,
        targets: TubeTargets,
        weights: StmaLoss,
        *,
        auxiliary_output: Tensor | None = None,
        auxiliary_weight: float = 0.0,
        processes: Processes = ALONE,
    ) -> dict[str, Tensor]:
        return stma_losses(outputs, targets, self.config, weights, processes)

    def detections(self, final: SnippetMaps, weights: StmaLoss, *, threshold: float = THRESHOLD) -> Detections:
        return detections(final, self.config, threshold=threshold)

    def assess(self, final: SnippetMaps, targets: TubeTargets, weights: StmaLoss) -> Assessment:
        return assess(final, targets, self.config, weights, threshold=THRESHOLD)


def _head(inputs: int, inner: int, outputs: int) -> nn.Sequential:
    """MOC's: a convolution, ReLU, and a 1 x 1 convolution."""
    head = nn.Sequential(nn.Conv2d(inputs, inner, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(inner, outputs, 1))
    nn.init.normal_(head.get_parameter("2.weight"), std=0.01)
    nn.init.zeros_(head.get_parameter("2.bias"))
    return head
