"""Counts the kernels that Triton would compile for the criterion while M walks from 1 to 100, and for clips of as many
frames and sides, without a GPU.

A process of its own, because kernels that were imported under TRITON_INTERPRET=1 know nothing of it:
python -m tests.kernels.specializations
"""

from __future__ import annotations

import json
from typing import Any

import torch
from actdet_kernels import (
    CenterMaps,
    Targets,
    Tubelets,
    backend,
    batch_norm,
    center_loss,
    center_peaks,
    deformable_attention,
    gather_clips,
    match,
    set_loss,
    suppress_overlaps,
)
from actdet_kernels.triton import launch
from torch import Tensor

KEYS: dict[str, set[Any]] = {}


def specialization(value: Any, specialize: bool) -> Any:
    """What Triton compiles an argument for: a type, and whether 16 divides the number or the address, or it is 1."""
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, int):
        wide = "i32" if -(2**31) <= value < 2**31 else "i64"
        return (wide, value == 1, value % 16 == 0) if specialize else wide
    return value


def record(kernel: Any, programs: int, **arguments: Any) -> None:
    if programs > 0:
        variable = [parameter for parameter in kernel.params if not parameter.is_constexpr]
        key = tuple(
            specialization(arguments.pop(parameter.name), not parameter.do_not_specialize) for parameter in variable
        )
        KEYS.setdefault(kernel.__name__, set()).add((key, tuple(sorted((k, str(v)) for k, v in arguments.items()))))


def step(layers: int, samples: int, queries: int, size: int, frames: int | None, each_frame: bool = False) -> None:
    """Everything that a training step asks for; memory holds whatever it held, as nothing runs."""
    tube = () if frames is None else (frames,)
    leading = () if layers == 1 else (layers,)
    logits = torch.empty(*leading, samples, queries, *(tube if each_frame else ()), 17, requires_grad=True)
    boxes = torch.empty(*leading, samples, queries, *tube, 4, requires_grad=True)
    labels, goals = torch.empty(samples, size, dtype=torch.int64), torch.empty(samples, size, *tube, 4)
    counts = torch.empty(samples, dtype=torch.int32)
    targets = Targets(labels, goals, counts)
    if frames is not None:
        targets = Tubelets(*targets, torch.empty(samples, size, frames, dtype=torch.bool))
    matched = match(logits, boxes, targets)
    set_loss(logits, boxes, targets, matched).total.backward()


def clips(pool: int, samples: int, frames: int, height: int, width: int) -> None:
    indices = torch.empty(samples, frames, dtype=torch.int64)
    changes = (torch.empty(samples, 4), torch.empty(samples, 3), torch.empty(pool))
    gather_clips(torch.empty(pool, height, width, 3, dtype=torch.uint8), indices, *changes)


def norm(samples: int, channels: int, frames: int, side: int) -> None:
    x = torch.empty(samples, frames, side, side, channels).permute(0, 4, 1, 2, 3).requires_grad_()
    weight, bias = torch.empty(channels), torch.empty(channels)
    batch_norm(x, weight, bias, relu=True).sum().backward()


def attention(samples: int, queries: int, height: int, width: int) -> None:
    sizes = [(height, width), (width, 1)]
    values = torch.empty(samples, width * (height + 1), 8, 32, requires_grad=True)
    points = torch.empty(samples, queries, 8, 2, 4, 2)
    deformable_attention(values, points, torch.empty(points.shape[:-1]), sizes).sum().backward()


def centers(samples: int, channels: int, side: int, frames: int, classes: int, actors: int) -> None:
    maps = CenterMaps(
        torch.empty(samples, channels, side, 1 + side % 31, requires_grad=True),
        torch.empty(samples, frames, 2, side, 1 + side % 31, requires_grad=True),
        torch.empty(samples, frames, 4, side, 1 + side % 31, requires_grad=True),
        torch.empty(samples, classes, 1 + side // 8, 1 + side // 4, requires_grad=True),
    )
    targets = Tubelets(
        torch.empty(samples, actors, dtype=torch.int64),
        torch.empty(samples, actors, frames, 4),
        torch.empty(samples, dtype=torch.int32),
        torch.empty(samples, actors, frames, dtype=torch.bool),
    )
    center_loss(maps, targets, key=frames - 1, stride=1 + side % 8).total.backward()


def peaks(samples: int, channels: int, height: int, width: int, frames: int, classes: int, count: int) -> None:
    maps = CenterMaps(
        torch.empty(samples, channels, height, width),
        torch.empty(samples, frames, 2, height, width),
        torch.empty(samples, frames, 4, height, width),
        torch.empty(samples, classes, height, 1 + width // 4),
    )
    center_peaks(maps, peaks=count)


def suppression(samples: int, rows: int, frames: int, classes: int) -> None:
    suppress_overlaps(torch.empty(samples, rows, frames, 4), torch.empty(samples, rows, classes), iou_threshold=0.5)


if __name__ == "__main__":
    launch.launch = record
    backend.choose_backend = lambda *arguments: "triton"
    found = {}
    for name, frames in (("boxes", None), ("tubelets", 8), ("frame logits", 8)):
        KEYS.clear()
        for queries in (12, 100):
            for size in range(1, 101):
                each_frame = name == "frame logits"
                step(1 + size % 7, 1 + size % 5, queries, size, frames and 1 + size % frames, each_frame)
        found[name] = {kernel: len(keys) for kernel, keys in KEYS.items()}
    KEYS.clear()
    for size in range(1, 101):
        clips(size, 1 + size % 7, 1 + size % 17, size, 1 + size % 19)
    found["clips"] = {kernel: len(keys) for kernel, keys in KEYS.items()}
    KEYS.clear()
    for size in range(1, 101):
        norm(1 + size, 8 * size, 1 + size % 3, 1 + size % 5)
    found["norm"] = {kernel: len(keys) for kernel, keys in KEYS.items()}
    KEYS.clear()
    for size in range(1, 101):
        attention(1 + size % 3, 40 + size, 1 + size % 5, size)
    found["attention"] = {kernel: len(keys) for kernel, keys in KEYS.items()}
    KEYS.clear()
    for size in range(1, 101):
        classes = 1 + size % 25
        centers(1 + size % 3, classes if size % 2 else 1, size, 1 + size % 7, classes, 1 + size % 40)
    found["centers"] = {kernel: len(keys) for kernel, keys in KEYS.items()}
    KEYS.clear()
    for size in range(1, 101):
        peaks(1 + size % 3, 1 + size % 24, size, 1 + size % 31, 1 + size % 7, 1 + size % 25, size)
    found["peaks"] = {kernel: len(keys) for kernel, keys in KEYS.items()}
    KEYS.clear()
    for size in range(1, 101):
        suppression(1 + size % 3, size, 1 + size % 7, 1 + size % 25)
    found["suppression"] = {kernel: len(keys) for kernel, keys in KEYS.items()}
    print(json.dumps(found))
