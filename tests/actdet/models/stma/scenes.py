"""Actors who move, and the maps of a network that knows exactly where they are and what they do."""

from __future__ import annotations

import torch
from torch import Tensor

from actdet.data.truth import TubeTargets
from actdet.models.stma.config import StmaConfig
from actdet.models.stma.maps import SnippetMaps, key_frame, snippet_starts

SURE = 12.0


def actors(
    config: StmaConfig, counts: tuple[int, ...], *, sparse: bool = False, hidden: float = 0.0, seed: int = 0
) -> TubeTargets:
    """Actors who walk through different rows of the picture, each in another one.

    Args:
        config: The shape of the network.
        counts: How many each clip has.
        sparse: Whether about half of the frames are not annotated.
        hidden: The share of the frames in which somebody is not visible.
        seed: Another one has other places.
    """
    generator = torch.Generator().manual_seed(seed)
    frames = config.frames
    rows = max([1, *counts])
    batch = len(counts)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    time = torch.arange(frames) / frames
    x = 0.2 + 0.3 * random(batch, rows, 1) + 0.3 * random(batch, rows, 1) * time
    y = ((torch.arange(rows) + 0.5) / rows)[None, :, None].expand_as(x)
    sides = torch.stack([0.12 + 0.1 * random(batch, rows, 1), 0.6 / rows + 0.1 / rows * random(batch, rows, 1)], -1)
    boxes = torch.cat([torch.stack([x, y], -1), sides.expand(-1, -1, frames, -1)], -1)
    labels = torch.randint(0, len(config.class_names), (batch, rows), generator=generator)

    annotated = random(batch, frames) > 0.5 if sparse else torch.ones(batch, 0, dtype=torch.bool)
    visible = random(batch, rows, frames) >= hidden
    if sparse:
        visible &= annotated[:, None]
    number = torch.tensor(counts, dtype=torch.int32)
    visible &= (torch.arange(rows) < number[:, None])[..., None]
    return TubeTargets(labels, torch.where(visible[..., None], boxes, 0), number, visible, annotated)


def perfect_maps(config: StmaConfig, targets: TubeTargets) -> SnippetMaps:
    """Return maps by which all actors who are visible in the key frame of a snippet are found where they are."""
    side = config.image_size // 4
    cells = config.image_size // 16
    starts = snippet_starts(config)
    batch = len(targets.counts)
    classes = len(config.class_names)
    channels = 1 if config.class_agnostic else classes
    shape = (batch, len(starts))
    centers = torch.full((*shape, channels, side, side), -SURE)
    movement = torch.zeros(*shape, config.snippet, 2, side, side)
    sizes = torch.ones(*shape, config.snippet, 4, side, side)
    logits = torch.zeros(*shape, classes, cells, cells) if config.class_agnostic else torch.zeros(*shape, 1, 1, 1)

    for clip, part in ((clip, part) for clip in range(batch) for part in range(len(starts))):
        key = starts[part] + key_frame(config)
        for row in range(int(targets.counts[clip])):
            if not targets.visible[clip, row, key]:
                continue
            label = int(targets.labels[clip, row])
            x, y = (targets.boxes[clip, row, key, :2] * side).tolist()
            column, line = int(x), int(y)
            centers[clip, part, label if channels > 1 else 0, line, column] = SURE
            if config.class_agnostic:
                logits[clip, part, label, int(y / side * cells), int(x / side * cells)] = SURE
            for frame in range(config.snippet):
                box = (targets.boxes[clip, row, starts[part] + frame] * side).tolist()
                movement[clip, part, frame, :, line, column] = torch.tensor(
                    [box[0] - column - 0.5, box[1] - line - 0.5]
                )
                at_x, at_y = (int(box[0]), int(box[1])) if config.moving_sizes else (column, line)
                middle_x, middle_y = at_x + 0.5, at_y + 0.5
                sizes[clip, part, frame, :, at_y, at_x] = torch.tensor(
                    [
                        middle_x - (box[0] - box[2] / 2),
                        middle_y - (box[1] - box[3] / 2),
                        box[0] + box[2] / 2 - middle_x,
                        box[1] + box[3] / 2 - middle_y,
                    ]
                )
    return SnippetMaps(centers, movement, sizes, logits)
