"""The decoder of tubelet queries: S slots in each of T frames.

    queries (B, S, T, 256) -> [slots of a frame -> frames of a slot -> features of the frame -> feed-forward] x L

Attention is factorized: over the slots within a frame, and over the frames within a slot, which costs T S^2 + S T^2
instead of (T S)^2. After each layer the boxes are refined, and the next one looks about them (Zhu et al. 2021).
"""

from __future__ import annotations

import math
from typing import cast

import torch
from actdet_kernels import deformable_attention, reference
from torch import Tensor, nn

from actdet.models.tubelet.config import TubeletConfig
from actdet.models.tubelet.features import HIDDEN, FrameFeatures

HEADS = 8
FEEDFORWARD = 1024

# How many points of each level a head reads.
POINTS = 4


class DecoderLayer(nn.Module):
    """One layer.

    Args:
        config: The shape of the detector.
        levels: How many levels the features have.
    """

    def __init__(self, config: TubeletConfig, levels: int) -> None:
        super().__init__()
        reads = DeformableReading if config.attention == "deformable" else PlainReading
        self.slot_attention = _attention(config)
        self.time_attention = _attention(config)
        self.reading = reads(config, levels)
        self.feedforward = nn.Sequential(
            nn.Linear(HIDDEN, FEEDFORWARD), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(FEEDFORWARD, HIDDEN)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in range(4))
        self.dropout = nn.Dropout(config.dropout)

        # At first only the features add to a query; see `ActionDetector`.
        for attention in (self.slot_attention, self.time_attention):
            nn.init.zeros_(attention.out_proj.weight)
        last = cast(nn.Linear, self.feedforward[-1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(
        self, queries: Tensor, identity: Tensor, boxes: Tensor, features: FrameFeatures, mask: Tensor | None = None
    ) -> Tensor:
        """Compute the queries that the next layer starts from.

        Args:
            queries: (B, S, T, 256).
            identity: (B, S, T, 256), which says of a query which slot and which frame it is of.
            boxes: (B, S, T, 4) float32, cxcywh in [0, 1], where each slot was found so far.
            features: Of the B clips.
            mask: (S, S) bool, True where the slot of the row must know nothing of that of the column.
        """
        clips, slots = queries.shape[:2]
        by_slot, by_time, by_reading, by_layer = self.norms

        in_frame = queries.transpose(1, 2)
        known = (in_frame + identity.transpose(1, 2)).flatten(0, 1)
        seen, _ = self.slot_attention(known, known, in_frame.flatten(0, 1), need_weights=False, attn_mask=mask)
        queries = by_slot(queries + self.dropout(seen.unflatten(0, (clips, -1)).transpose(1, 2)))

        known = (queries + identity).flatten(0, 1)
        seen, _ = self.time_attention(known, known, queries.flatten(0, 1), need_weights=False)
        queries = by_time(queries + self.dropout(seen.unflatten(0, (clips, slots))))

        # What reads features has the slots of a frame together.
        looking = (queries + identity).transpose(1, 2)
        read = self.reading(looking, boxes.transpose(1, 2), features).transpose(1, 2)
        queries = by_reading(queries + self.dropout(read))
        return by_layer(queries + self.dropout(self.feedforward(queries)))


class PlainReading(nn.Module):
    """Cross-attention of each query to all pixels of its frame, or of all frames.

    Args:
        config: The shape of the detector.
        levels: How many levels the features have.
    """

    def __init__(self, config: TubeletConfig, levels: int) -> None:
        super().__init__()
        self.all_frames = config.all_frames
        self.attention = _attention(config)
        nn.init.eye_(self.attention.in_proj_weight[2 * HIDDEN :])
        nn.init.eye_(self.attention.out_proj.weight)

        # Only where a query reads several frames must it know which of them a pixel is in.
        self.times = nn.Parameter(torch.randn(config.frames, 1, HIDDEN) * 0.1) if config.all_frames else None

    def forward(self, queries: Tensor, boxes: Tensor, features: FrameFeatures) -> Tensor:
        """(B, T, S, 256) to what each query reads, (B, T, S, 256)."""
        pixels = features.pixels
        assert features.places is not None
        places = features.places if self.times is None else features.places + self.times
        keys = pixels + places
        shape = queries.shape
        if self.all_frames:
            queries, keys, pixels = (tensor.flatten(1, 2) for tensor in (queries, keys, pixels))
        else:
            queries, keys, pixels = (tensor.flatten(0, 1) for tensor in (queries, keys, pixels))
        read, _ = self.attention(queries, keys, pixels, need_weights=False)
        return read.reshape(shape)


class DeformableReading(nn.Module):
    """Each head of a query reads a few points of each level, about the box that the query has so far.

    Args:
        config: The shape of the detector.
        levels: How many levels the features have.
    """

    def __init__(self, config: TubeletConfig, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.frames = config.frames if config.all_frames else 1
        self.offsets = nn.Linear(HIDDEN, HEADS * levels * POINTS * 2)
        self.weights = nn.Linear(HIDDEN, HEADS * self.frames * levels * POINTS)
        self.values = nn.Linear(HIDDEN, HIDDEN)
        self.output = nn.Linear(HIDDEN, HIDDEN)
        self._initialize()

    def _initialize(self) -> None:
        """Start with points along eight directions, the same for all queries, and with an average of what is there."""
        directions = torch.arange(HEADS) * (2 * math.pi / HEADS)
        grid = torch.stack([directions.cos(), directions.sin()], -1)
        grid = grid / grid.abs().amax(-1, keepdim=True)
        grid = grid[:, None, None] * torch.arange(1, POINTS + 1)[:, None]
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        with torch.no_grad():
            self.offsets.bias.copy_(grid.expand(HEADS, self.levels, POINTS, 2).flatten())
        for linear in (self.values, self.output):
            nn.init.eye_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, boxes: Tensor, features: FrameFeatures) -> Tensor:
        """(B, T, S, 256) to what each query reads, (B, T, S, 256)."""
        clips, frames, slots = queries.shape[:3]
        offsets = self.offsets(queries).unflatten(-1, (HEADS, self.levels, POINTS, 2))
        weights = self.weights(queries).unflatten(-1, (HEADS, -1)).softmax(-1)
        weights = weights.unflatten(-1, (self.frames * self.levels, POINTS))

        # At an offset of POINTS a point is on the edge of the box.
        center, side = boxes[..., None, None, None, :].split(2, -1)
        points = center + offsets / POINTS * side / 2
        values = self.values(features.pixels).unflatten(-1, (HEADS, -1))

        # The kernels know samples and levels. Frames are samples, or levels if queries read all of them.
        sizes = features.sizes
        if self.frames > 1:
            values = values.flatten(1, 2)
            sizes = sizes * frames
            points = points.repeat(*[1] * 4, frames, 1, 1)
            points = points.flatten(1, 2)
            weights = weights.flatten(1, 2)
        else:
            values, points, weights = (tensor.flatten(0, 1) for tensor in (values, points, weights))
        if torch.compiler.is_exporting():
            # What reads an exported file has no operators but PyTorch's own.
            read = reference.deformable_attention(values, points, weights, sizes, None, True)
        else:
            read = deformable_attention(values, points, weights, sizes)
        return self.output(read).reshape(clips, frames, slots, HIDDEN)


def _attention(config: TubeletConfig) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(HIDDEN, HEADS, config.dropout, batch_first=True)
