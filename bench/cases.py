"""The problems that the benchmarks solve: sizes that people train with, in the three regimes of a training.

uniform: random logits and boxes, as most benchmarks have. near-identical: every query says almost the same, as in the
first steps of a training; the hardest. trained: every target has a query that found it, the others say no_object.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from actdet_kernels import CenterMaps, Targets, Tubelets, frame_levels
from torch import Tensor

REGIMES = ("uniform", "near-identical", "trained")


class Size(NamedTuple):
    batch: int
    layers: int
    queries: int
    targets: int
    classes: int = 92
    frames: int | None = None

    def __str__(self) -> str:
        frames = "" if self.frames is None else f"xT{self.frames}"
        return f"B{self.batch}xL{self.layers}xN{self.queries}xM{self.targets}{frames}"


SIZES = [
    Size(16, 3, 12, 4, classes=3),
    Size(16, 6, 100, 20),
    Size(16, 6, 100, 63),
    Size(16, 7, 300, 20),
    Size(16, 7, 300, 100),
    Size(16, 7, 900, 30),
    Size(16, 7, 900, 100),
    Size(8, 5, 3900, 30),
    Size(8, 1, 64, 8, classes=3, frames=32),
]


class Matrices(NamedTuple):
    problems: int
    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.problems} of {self.rows}x{self.columns}"


MATRICES = [
    Matrices(1, 12, 4),  # the cost of a call
    Matrices(48, 12, 4),
    Matrices(96, 100, 20),
    Matrices(96, 100, 63),
    Matrices(208, 300, 100),  # these three: torch-linear-assignment's own table
    Matrices(208, 300, 300),
    Matrices(208, 300, 600),
    Matrices(1, 1024, 1024),  # few and large
    Matrices(5, 1024, 1024),
]


class Problem(NamedTuple):
    logits: Tensor
    boxes: Tensor
    targets: Targets | Tubelets


class ClipSize(NamedTuple):
    clips: int
    frames: int
    side: int

    def __str__(self) -> str:
        return f"{self.clips} of {self.frames}x{self.side}x{self.side}"


CLIPS = [ClipSize(8, 16, 224), ClipSize(8, 16, 112)]
CHANGES = ("windows and colors", "windows", "colors", "none")


class NormSize(NamedTuple):
    clips: int
    channels: int
    frames: int
    side: int
    with_shortcut: bool = False

    def __str__(self) -> str:
        size = f"{self.clips} of {self.channels}x{self.frames}x{self.side}x{self.side}"
        return f"{size} + shortcut" if self.with_shortcut else size


# Of R(2+1)D-18 on 16 x 224 x 224: within layer1, layer2 and layer4, and at the end of a block of layer1 and layer3.
NORMS = [
    NormSize(8, 144, 16, 112),
    NormSize(8, 288, 8, 56),
    NormSize(8, 1152, 2, 14),
    NormSize(8, 64, 16, 112, with_shortcut=True),
    NormSize(8, 256, 4, 28, with_shortcut=True),
]


class Features(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor
    shortcut: Tensor | None
    d_y: Tensor


class AttentionSize(NamedTuple):
    """Samples of so many queries, of 8 heads with 32 features, which read 4 points of each level."""

    samples: int
    queries: int
    levels: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        height, width = self.levels[0]
        return f"{self.samples} of {self.queries} queries, {len(self.levels)} levels from {height}x{width}"


PYRAMID = ((100, 134), (50, 67), (25, 34), (13, 17))
ATTENTIONS = [
    AttentionSize(8 * 16, 12, ((28, 28), (14, 14), (7, 7))),  # a decoder of tubelets, each frame a sample
    AttentionSize(2, 300, PYRAMID),  # Deformable DETR's decoder and its encoder, of pictures of 800 x 1066
    AttentionSize(2, sum(height * width for height, width in PYRAMID), PYRAMID),
]
PLACES = ("uniform", "near-identical")


class Attention(NamedTuple):
    values: Tensor
    points: Tensor
    weights: Tensor
    d_out: Tensor
    sizes: list[tuple[int, int]]


class PeakSize(NamedTuple):
    """Samples of so many frames, with maps of so many centers' channels, and of classes on a coarser grid, or none."""

    samples: int
    frames: int
    channels: int
    side: int
    classes: int

    def __str__(self) -> str:
        return f"{self.samples} of {self.frames} frames, {self.channels} x {self.side}x{self.side}"


# STMA on UCF101-24, which finds actors of any class, and MOC, which has a map for each.
PEAKS = [PeakSize(24, 5, 1, 72, 24), PeakSize(24, 7, 24, 72, 0)]


class OverlapSize(NamedTuple):
    """Samples of so many boxes, or tubelets of so many frames, with a score for each class."""

    samples: int
    rows: int
    frames: int
    classes: int

    def __str__(self) -> str:
        what = "boxes" if self.frames == 1 else f"tubelets of {self.frames} frames"
        return f"{self.samples} of {self.rows} {what}, {self.classes} classes"


# YOWO's and A*'s grid of 7 x 7 with five anchors on UCF101-24, a thousand proposals on COCO, and STMA's tubelets.
OVERLAPS = [OverlapSize(8, 245, 1, 24), OverlapSize(2, 1000, 1, 80), OverlapSize(24, 10, 5, 24)]


class Overlaps(NamedTuple):
    boxes: Tensor
    scores: Tensor


class CenterSize(NamedTuple):
    """Samples of so many frames with 3 actors, and their classes on a coarser grid, or as channels of the centers."""

    samples: int
    frames: int
    side: int
    classes: int
    coarse: int | None

    def __str__(self) -> str:
        place = "channels" if self.coarse is None else f"classes on {self.coarse}x{self.coarse}"
        return f"{self.samples} of {self.frames}x{self.side}x{self.side}, {self.classes} {place}"


# STMA's on UCF101-24, and TTFNet's on COCO.
CENTERS = [CenterSize(24, 5, 72, 24, 9), CenterSize(16, 1, 128, 80, None)]


class CenterProblem(NamedTuple):
    maps: CenterMaps
    targets: Tubelets


class Clips(NamedTuple):
    frames: Tensor
    indices: Tensor
    crops: Tensor | None
    color: Tensor | None
    frame_means: Tensor | None


def make_clips(size: ClipSize, changes: str, device: torch.device) -> Clips:
    """Of 100 frames of noise; crops that lie within the picture, half of them mirrored."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (100, size.side, size.side, 3), generator=generator, dtype=torch.uint8)
    indices = torch.randint(100, (size.clips, size.frames), generator=generator)
    extent = 0.6 + 0.4 * torch.rand(size.clips, 2, generator=generator)
    crops = torch.cat([(1 - extent) * torch.rand(size.clips, 2, generator=generator), extent], 1)
    crops[::2, 0] += crops[::2, 2]
    crops[::2, 2] *= -1
    color = 0.6 + 0.8 * torch.rand(size.clips, 3, generator=generator)
    frame_means = frame_levels(frames, backend="reference")
    return Clips(
        frames.to(device),
        indices.to(device),
        crops.to(device) if "windows" in changes else None,
        color.to(device) if "colors" in changes else None,
        frame_means.to(device) if "colors" in changes else None,
    )


def make_features(size: NormSize, device: torch.device, dtype: torch.dtype) -> Features:
    """Channels-last video as a convolution leaves it, and a gradient of the same layout."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (size.clips, size.frames, size.side, size.side, size.channels)
    x, d_y, shortcut = (
        torch.randn(shape, generator=generator, device=device, dtype=dtype).permute(0, 4, 1, 2, 3) for _ in range(3)
    )
    weight, bias = (torch.rand(size.channels, generator=generator, device=device) for _ in range(2))
    return Features(x, weight, bias - 0.5, shortcut if size.with_shortcut else None, d_y)


def make_attention(size: AttentionSize, places: str, device: torch.device) -> Attention:
    """Points anywhere, or all within a few pixels of the center, where their gradients meet in the same pixels."""
    generator = torch.Generator(device).manual_seed(0)
    pixels = sum(height * width for height, width in size.levels)
    each = (size.samples, size.queries, 8, len(size.levels), 4)
    values = torch.randn(size.samples, pixels, 8, 32, generator=generator, device=device)
    points = torch.rand(*each, 2, generator=generator, device=device)
    if places == "near-identical":
        points = 0.5 + 0.02 * (points - 0.5)
    weights = torch.randn(each, generator=generator, device=device).flatten(-2).softmax(-1).view(each)
    d_out = torch.randn(size.samples, size.queries, 8 * 32, generator=generator, device=device)
    return Attention(values, points, weights, d_out, list(size.levels))


def make_maps(size: PeakSize, device: torch.device) -> CenterMaps:
    """Noise, in which a pixel in nine is a peak. Channels lie side by side, as networks in channels_last give them."""
    generator = torch.Generator().manual_seed(0)

    def channels_last(channels: int, side: int) -> Tensor:
        return torch.randn(size.samples, side, side, channels, generator=generator).to(device).movedim(-1, 1)

    return CenterMaps(
        channels_last(size.channels, size.side),
        3 * channels_last(2 * size.frames, size.side).unflatten(1, (size.frames, 2)),
        9 * channels_last(4 * size.frames, size.side).unflatten(1, (size.frames, 4)),
        channels_last(size.classes, size.side // 4) if size.classes else None,
    )


def make_overlaps(size: OverlapSize, device: torch.device) -> Overlaps:
    """Boxes about an object for each ten of them, and scores of which half are above 0.05."""
    generator = torch.Generator().manual_seed(0)
    samples, rows, frames, classes = size
    objects = torch.rand(samples, -(-rows // 10), 1, 4, generator=generator).repeat_interleave(10, 1)[:, :rows]
    moved = objects + 0.05 * torch.randn(samples, rows, frames, 4, generator=generator)
    corner = moved[..., :2]
    boxes = torch.cat([corner, corner + 0.1 + 0.4 * moved[..., 2:].abs()], -1)
    scores = torch.rand(samples, rows, classes, generator=generator) ** 4
    return Overlaps((boxes[:, :, 0] if frames == 1 else boxes).to(device), scores.to(device))


def make_centers(size: CenterSize, device: torch.device) -> CenterProblem:
    """Maps as at the start of a training, and 3 actors of 8 rows, who stay near where they are."""
    generator = torch.Generator().manual_seed(0)
    batch, frames, side, classes, coarse = size
    channels = classes if coarse is None else 1
    centers = torch.randn(batch, channels, side, side, generator=generator) - 2
    movement = torch.randn(batch, frames, 2, side, side, generator=generator)
    sides = 10 * torch.rand(batch, frames, 4, side, side, generator=generator)
    logits = None if coarse is None else torch.randn(batch, classes, coarse, coarse, generator=generator).to(device)
    maps = CenterMaps(centers.to(device), movement.to(device), sides.to(device), logits)

    boxes = _boxes(generator, batch, 8, 1) + 0.02 * torch.rand(batch, 8, frames, 4, generator=generator)
    labels = torch.randint(classes, (batch, 8), generator=generator)
    visible = torch.rand(batch, 8, frames, generator=generator) < 0.9
    counts = torch.full((batch,), 3, dtype=torch.int32)
    return CenterProblem(maps, Tubelets(labels, boxes, counts, visible).to(device))


def make_problem(size: Size, regime: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Problem:
    """Logits (L, B, N, C), boxes (L, B, N, 4) or (L, B, N, T, 4), and targets whose every row is real."""
    generator = torch.Generator().manual_seed(0)
    leading = (size.layers, size.batch)
    frames = () if size.frames is None else (size.frames,)
    labels = torch.randint(size.classes - 1, (size.batch, size.targets), generator=generator)
    goals = _boxes(generator, size.batch, size.targets, *frames)
    logits = torch.randn(*leading, size.queries, size.classes, generator=generator)
    boxes = _boxes(generator, *leading, size.queries, *frames)
    if regime == "near-identical":
        logits = logits[:1, :1, :1] + 1e-3 * logits
        boxes = (boxes[:1, :1, :1] + 1e-3 * (boxes - 0.5)).clamp(0, 1)
    elif regime == "trained":
        chosen = torch.stack([torch.randperm(size.queries, generator=generator)[: size.targets] for _ in labels])
        sample = torch.arange(size.batch)[:, None]
        logits[..., -1] += 5
        logits[:, sample, chosen, labels] += 10
        boxes[:, sample, chosen] = goals + 0.02 * torch.randn(goals.shape, generator=generator)
        boxes = boxes.clamp(0.01, 1)  # a box without an area has no one gradient
    fields = (labels, goals, torch.full((size.batch,), size.targets, dtype=torch.int32))
    targets = Targets(*fields)
    if frames:
        targets = Tubelets(*fields, torch.rand(*labels.shape, *frames, generator=generator) < 0.8)
    return Problem(logits.to(device, dtype), boxes.to(device, dtype), targets.to(device))


def make_cost(shape: Matrices, regime: str, device: torch.device) -> Tensor:
    """(problems, rows, columns) float32."""
    generator = torch.Generator().manual_seed(0)
    problems, rows, columns = shape
    cost = torch.rand(shape, generator=generator)
    if regime == "near-identical":
        cost = cost[:, :1] + 1e-3 * cost
    elif regime == "trained":
        paired = min(rows, columns)
        order = torch.stack([torch.randperm(rows, generator=generator)[:paired] for _ in range(problems)])
        cost[torch.arange(problems)[:, None], order, torch.arange(paired)] -= 1
    return cost.to(device)


def _boxes(generator: torch.Generator, *shape: int) -> Tensor:
    center = 0.2 + 0.6 * torch.rand(*shape, 2, generator=generator)
    return torch.cat([center, 0.05 + 0.3 * torch.rand(*shape, 2, generator=generator)], -1)
