"""How STMA tells what an actor does: the motion in a snippet, and the whole clip (section 2.2 of the paper).

    frames' features (B, n, K, 64, H, W) -> strided convolutions -> motion excitation -> beside the clip's features
    -> channel-wise self-attention -> logits of the classes (B * n, A, h, w)

The paper names the attention and not its form. This is that of YOWO (Köpüklü et al. 2019), whose channels attend to
each other (DANet, Fu et al. 2019). Motion excitation is that of TEA (Li et al. 2020), as the paper's equations 1 and 2
have it: with the mask itself, from which TEA takes a half.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The channels in which motion is looked for are so many times fewer (TEA).
_REDUCTION = 16

# The channels of the features from which classes are told.
_FUSED = 256


class ClassHead(nn.Module):
    """The features of snippets, and of the clip, to the logits of the classes.

    Args:
        width: The channels of a frame's features.
        snippet: K.
        classes: A.
        clip_width: The channels of the clip's features; 0 if there are none.
        stride: How many times as large the pixels of the clip's features are as those of the frames', a power of two.
        motion_excitation: Whether channels in which frames differ are stressed.
    """

    def __init__(
        self, width: int, snippet: int, classes: int, *, clip_width: int, stride: int, motion_excitation: bool
    ) -> None:
        super().__init__()
        self.down = nn.Sequential(*(_conv(width, width, stride=2) for _ in range(int(math.log2(stride)))))
        self.motion = MotionExcitation(width) if motion_excitation else None
        self.before = nn.Sequential(_conv(snippet * width + clip_width, _FUSED, 1), _conv(_FUSED, _FUSED))
        self.attention = ChannelAttention() if clip_width else None
        self.after = _conv(_FUSED, _FUSED)
        self.logits = nn.Conv2d(_FUSED, classes, 1)

    def reduce(self, pictures: Tensor) -> Tensor:
        """(N, 64, H, W), the features of single frames, to (N, 64, h, w)."""
        return self.down(pictures)

    def forward(self, snippets: Tensor, clip: Tensor | None) -> Tensor:
        """Compute the logits (N, A, h, w).

        Args:
            snippets: (N, K, 64, h, w), what `reduce` made of the frames of N snippets.
            clip: (N, C, h, w), of the clip that each snippet is from.
        """
        if self.motion is not None:
            snippets = self.motion(snippets)
        features = snippets.flatten(1, 2)
        if clip is not None:
            features = torch.cat([features, clip], 1)
        features = self.before(features)
        if self.attention is not None:
            features = self.attention(features)
        return self.logits(self.after(features))


class MotionExcitation(nn.Module):
    """Frames (N, K, C, h, w) to the same with channels stressed in which the next frame differs (eq. 1 and 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = width // _REDUCTION
        self.reduce = nn.Sequential(nn.Conv2d(width, narrow, 1, bias=False), nn.BatchNorm2d(narrow))
        self.next = nn.Conv2d(narrow, narrow, 3, padding=1, groups=narrow, bias=False)
        self.expand = nn.Sequential(nn.Conv2d(narrow, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, frames: Tensor) -> Tensor:
        count = frames.shape[1]
        narrow = self.reduce(frames.flatten(0, 1))
        following = self.next(narrow).unflatten(0, (-1, count))
        motion = following[:, 1:] - narrow.unflatten(0, (-1, count))[:, :-1]

        # The last frame has no next one, so nothing moves in it. Means of zeros are zeros.
        average = F.pad(motion.mean((3, 4)), (0, 0, 0, 1))
        mask = self.expand(average.flatten(0, 1)[..., None, None]).sigmoid()
        return frames + frames * mask.unflatten(0, (-1, count))


class ChannelAttention(nn.Module):
    """Features (N, C, h, w) to the same, to which each channel adds those that are unlike it (DANet, as in YOWO)."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        # (N, C, h * w); products of bf16 would be added up in too few bits for a softmax.
        channels = features.flatten(2)
        with torch.autocast(features.device.type, enabled=False):
            given = channels.float()
            energy = given @ given.transpose(1, 2)
            attention = (energy.amax(-1, keepdim=True) - energy).softmax(-1)
            attended = attention @ given
        return features + self.gamma.to(features.dtype) * attended.to(features.dtype).view_as(features)


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution, BatchNorm and ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
