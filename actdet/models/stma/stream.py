"""STMA on a stream: each frame goes through the backbone of single frames once, and never again.

    new frame -> picture backbone -> kept, with those of the K - 1 frames before -> maps of the last K frames
              -> kept among the last T frames -> clip backbone, every so many frames

The answer is that of the snippet that ends with the new frame. Before there are T frames, the first one stands for
those that are missing.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from actdet.models.stma.detector import StmaDetector
from actdet.models.stma.features import FrameFeatures
from actdet.models.stma.maps import SnippetMaps


class SnippetStream:
    """Answers for the last K frames of one stream whenever a frame arrives.

    Args:
        network: The detector, on the device of the frames; it is switched to evaluation mode.
        clip_every: From how many frames to how many the backbone of clips runs. In between, what it said last is used.

    Raises:
        ValueError: `clip_every` is below 1.
    """

    def __init__(self, network: StmaDetector, *, clip_every: int = 1) -> None:
        if clip_every < 1:
            raise ValueError(f"clip_every must be at least 1, got {clip_every}")
        self.network = network.eval()
        self.clip_every = clip_every
        self._frames: deque[Tensor] = deque(maxlen=network.config.frames)
        self._features: deque[FrameFeatures] = deque(maxlen=network.config.snippet)
        self._clip: Tensor | None = None
        self._pushed = 0

    @torch.no_grad()
    def push(self, frame: Tensor) -> SnippetMaps:
        """Take the next frame, and say what the last K frames show.

        Args:
            frame: (3, S, S), normalized as `actdet.data.augment` does.

        Returns:
            Maps of one clip with one snippet, whose last frame is this one.
        """
        network = self.network
        backbone = network.backbone
        picture = frame[None].contiguous(memory_format=torch.channels_last)
        features = network.of_frames(backbone.pictures(picture))
        missing = len(self._features) == 0
        self._frames.extend([frame] * (network.config.frames if missing else 1))
        self._features.extend([features] * (network.config.snippet if missing else 1))

        if backbone.clips is not None and self._pushed % self.clip_every == 0:
            self._clip = backbone.clips(torch.stack([*self._frames], 1)[None])
        self._pushed += 1

        snippet = FrameFeatures(*(torch.stack(each, 1) for each in zip(*self._features, strict=True)))
        return SnippetMaps(*(maps[None] for maps in network.of_snippets(snippet, self._clip)))
