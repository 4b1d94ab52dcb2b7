"""Targets: what a batch should be matched with, as three padded tensors of fixed shape.

Fixed shapes are what lets everything behind them run without a read-back to the host: a new number of
targets is a new value in `counts`, never a new shape.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Targets(NamedTuple):
    """The targets of B samples, padded to M rows each.

    labels: (B, M) int64, class of each target.
    boxes: (B, M, 4) floating point, cxcywh in [0, 1].
    counts: (B,) int32 or int64, how many of the M rows are real; rows past it may hold anything and count for nothing.
        A count below 0 is as 0, one above M as M.
    """

    labels: Tensor
    boxes: Tensor
    counts: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Targets:
        """The same targets on `device`."""
        return Targets(*(field.to(device, non_blocking=non_blocking) for field in self))

    @property
    def valid(self) -> Tensor:
        """(B, M) bool: the rows that are real targets."""
        return valid_rows(self)


class Tubelets(NamedTuple):
    """Targets that are boxes over T frames each (action tubelets), for predictions of boxes (..., B, N, T, 4).

    labels, counts: as in `Targets`.
    boxes: (B, M, T, 4) floating point, cxcywh in [0, 1].
    visible: (B, M, T) bool; costs and losses are means over the visible frames, whatever the others hold. A tubelet
        that is visible nowhere has no box to compare: its L1 and GIoU terms are 0.
    """

    labels: Tensor
    boxes: Tensor
    counts: Tensor
    visible: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Tubelets:
        """The same tubelets on `device`."""
        return Tubelets(*(field.to(device, non_blocking=non_blocking) for field in self))

    @property
    def valid(self) -> Tensor:
        """(B, M) bool: the rows that are real targets."""
        return valid_rows(self)


def valid_rows(targets: Targets | Tubelets) -> Tensor:
    """`targets.valid`, for what torch.compile traces: PyTorch 2.7 stops at a property of a tuple."""
    return torch.arange(targets.labels.shape[1], device=targets.labels.device) < targets.counts[:, None]


def pad_targets(
    targets: Sequence[Mapping[str, Tensor]],
    device: torch.device | str | None = None,
    max_targets: int | None = None,
) -> Targets:
    """Pad DETR's list of `{"labels": (m,), "boxes": (m, 4)}`, one entry a sample, into `Targets`.

    max_targets: the padded length M; by default the longest sample's, at least 1. Give it to keep one
        shape for a whole training. A sample with more targets raises ValueError.
    device: where the result lives; by default that of the first sample's labels.
    A few launches whatever the number of samples, and no wait for the device.
    """
    counts = [len(sample["labels"]) for sample in targets]
    for index, (sample, count) in enumerate(zip(targets, counts, strict=True)):
        _check_labels(index, sample["labels"])
        if sample["boxes"].shape != (count, 4):
            raise ValueError(
                f"targets[{index}]: boxes must be ({count}, 4) to go with {count} labels, "
                f"got {tuple(sample['boxes'].shape)}"
            )
    longest = max(counts, default=0)
    size = max(longest, 1) if max_targets is None else max_targets
    if longest > size:
        raise ValueError(f"targets[{counts.index(longest)}]: {longest} targets, but max_targets={size}")

    # All samples one after the other, behind a row of zeros to which the padding points.
    own = targets[0]["labels"].device if targets else torch.device("cpu")
    dtype = targets[0]["boxes"].dtype if targets else torch.float32
    labels = [torch.zeros(1, dtype=torch.int64, device=own)]
    boxes = [torch.zeros(1, 4, dtype=dtype, device=own)]
    for sample in targets:
        labels.append(sample["labels"].to(own, torch.int64))
        boxes.append(sample["boxes"].to(own, dtype))
    ends = itertools.accumulate(counts)
    rows = [
        [1 + end - count + row if row < count else 0 for row in range(size)]
        for end, count in zip(ends, counts, strict=True)
    ]
    index = torch.tensor(rows, dtype=torch.int64).reshape(len(targets), size).to(own, non_blocking=True)
    number = torch.tensor(counts, dtype=torch.int32)
    padded = Targets(torch.cat(labels)[index], torch.cat(boxes)[index], number)
    return padded.to(own if device is None else device, non_blocking=True)


def _check_labels(index: int, labels: Tensor) -> None:
    # Nobody says what kind of number the labels of nothing are: `torch.tensor([])` is float32.
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.ndim != 1 or not (whole or len(labels) == 0):
        raise ValueError(f"targets[{index}]: labels must be (m,) integers, got {tuple(labels.shape)} {labels.dtype}")


def check_predictions(logits: Tensor, boxes: Tensor, targets: Targets | Tubelets) -> None:
    """Raise ValueError where `logits (..., B, N, C)`, `boxes` and `targets` disagree.

    boxes: (..., B, N, 4) with `Targets`, (..., B, N, T, 4) with `Tubelets`.
    Looks at shapes, dtypes and devices, never at values, so it costs no synchronisation.
    """
    frames = boxes.shape[-2:-1] if isinstance(targets, Tubelets) else ()
    if logits.ndim < 3 or boxes.shape != (*logits.shape[:-1], *frames, 4):
        raise ValueError(
            f"logits (..., B, N, C) and boxes (..., B, N, {'T, ' if isinstance(targets, Tubelets) else ''}4) "
            f"must agree, got {tuple(logits.shape)} and {tuple(boxes.shape)}"
        )
    if boxes.device != logits.device:
        raise ValueError(f"boxes are on {boxes.device}, logits on {logits.device}")
    if logits.shape[-1] == 0:
        raise ValueError(f"logits (..., B, N, C) must have a class, got {tuple(logits.shape)}")
    batch = logits.shape[-3]
    size = targets.labels.shape[-1] if targets.labels.ndim else 0
    wanted = {"labels": (batch, size), "boxes": (batch, size, *frames, 4), "counts": (batch,)}
    if isinstance(targets, Tubelets):
        wanted["visible"] = (batch, size, *frames)
        if targets.visible.dtype != torch.bool:
            raise ValueError(f"targets.visible must be bool, got {targets.visible.dtype}")
    for name, shape in wanted.items():
        tensor = getattr(targets, name)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"targets.{name} must be {shape} for a batch of {batch}, got {tuple(tensor.shape)}")
        if tensor.device != logits.device:
            raise ValueError(f"targets.{name} is on {tensor.device}, logits on {logits.device}")
    if targets.labels.dtype != torch.int64:
        raise ValueError(f"targets.labels must be int64, got {targets.labels.dtype}")
    if targets.counts.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"targets.counts must be int32 or int64, got {targets.counts.dtype}")
    if not (logits.is_floating_point() and boxes.is_floating_point() and targets.boxes.is_floating_point()):
        raise ValueError(
            f"logits and boxes must be floating point, "
            f"got {logits.dtype}, {boxes.dtype} and targets.boxes {targets.boxes.dtype}"
        )


def check_values(targets: Targets | Tubelets, classes: int) -> None:
    """Raise ValueError, naming the sample, for a count or a label that there cannot be. It waits for the device."""
    check_counts("targets.counts", targets.counts, targets.labels.shape[1])
    wrong = (valid_rows(targets) & ((targets.labels < 0) | (targets.labels >= classes))).nonzero()
    if len(wrong):
        sample, row = wrong[0].tolist()
        label = targets.labels[sample, row].item()
        raise ValueError(f"targets.labels[{sample}, {row}] must be 0 to {classes - 1}, got {label}")


def check_counts(name: str, counts: Tensor, size: int) -> None:
    """Raise ValueError, naming the sample, for a count that is not in [0, size]. It waits for the device."""
    for sample, count in enumerate(counts.tolist()):
        if not 0 <= count <= size:
            raise ValueError(f"{name}[{sample}] must be 0 to {size}, got {count}")
