"""Targets: what the predictions of a batch are matched with, as padded tensors of fixed shape.

Because shapes are fixed, nothing that uses targets has to read anything back to the host: another number of targets is
another value in `counts`, and never another shape.

The public types and functions come first, then the parts of `pad_targets`, then the checks that operations share.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Targets(NamedTuple):
    """The targets of B samples, padded to M rows each.

    Args:
        labels: (B, M) int64, the class of each target. Or (B, M, K) for targets with several labels, such as all that
            a person does: the first, and those of the others that are not -1, all different. Those are for costs and
            losses in which every logit is a class.
        boxes: (B, M, 4) floating point, cxcywh in [0, 1].
        counts: (B,) int32 or int64, the number of rows of each sample that are real. Later rows are padding: they may
            hold anything, and are ignored. A count below 0 counts as 0, one above M as M.
    """

    labels: Tensor
    boxes: Tensor
    counts: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Targets:
        """Return the same targets on `device`. With `non_blocking`, copies from pinned memory are not waited for."""
        return Targets(*(field.to(device, non_blocking=non_blocking) for field in self))

    @property
    def valid(self) -> Tensor:
        """(B, M) bool: the rows that are real targets."""
        return valid_rows(self)


class Tubelets(NamedTuple):
    """Targets that are boxes over T frames each (action tubelets), for predictions of boxes (..., B, N, T, 4).

    Args:
        labels: As in `Targets`. Or (B, M, T, K), the labels in each frame, for logits of each frame; those of other
            than the visible frames are ignored.
        boxes: (B, M, T, 4) floating point, cxcywh in [0, 1].
        counts: As in `Targets`.
        visible: (B, M, T) bool. Costs and losses are means over the visible frames, and boxes of other frames are
            ignored. A tubelet that is visible nowhere has no box to compare, so its L1 and GIoU terms are 0.
    """

    labels: Tensor
    boxes: Tensor
    counts: Tensor
    visible: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Tubelets:
        """Return the same tubelets on `device`. With `non_blocking`, copies from pinned memory are not waited for."""
        return Tubelets(*(field.to(device, non_blocking=non_blocking) for field in self))

    @property
    def valid(self) -> Tensor:
        """(B, M) bool: the rows that are real targets."""
        return valid_rows(self)


def valid_rows(targets: Targets | Tubelets) -> Tensor:
    """Return `targets.valid`. Unlike that, torch.compile can trace it: PyTorch 2.7 stops at a property of a tuple."""
    return torch.arange(targets.labels.shape[1], device=targets.labels.device) < targets.counts[:, None]


def repeat_targets(targets: Targets | Tubelets, times: int) -> Targets | Tubelets:
    """Repeat every target, so that `match` gives it several queries (one-to-many matching, H-DETR, Jia et al. 2023).

    The copies of target j are rows j * times to (j + 1) * times - 1, so `matched.unflatten(-1, (M, times))` has the
    queries of each target. Losses count every copy as a target.

    Args:
        targets: B samples of M rows.
        times: The number of copies of each target.

    Returns:
        B samples of M * times rows, with counts that are in [0, M * times].

    Raises:
        ValueError: `times` is below 1.
    """
    if times < 1:
        raise ValueError(f"times must be at least 1, got {times}")

    counts = targets.counts.clamp(0, targets.labels.shape[1]) * times
    names = [name for name in targets._fields if name != "counts"]
    rows = {name: getattr(targets, name).repeat_interleave(times, dim=1) for name in names}
    return targets._replace(counts=counts, **rows)


def labels_of(sample: Mapping[str, Any]) -> Any:
    """Return a sample's labels, which are called "labels" in DETR and "class_labels" in Hugging Face's transformers."""
    return sample["class_labels" if "class_labels" in sample else "labels"]


def pad_targets(
    targets: Sequence[Mapping[str, Any]],
    device: torch.device | str | None = None,
    max_targets: int | None = None,
    max_labels: int | None = None,
) -> Targets | Tubelets:
    """Pad DETR's list of `{"labels": (m,), "boxes": (m, 4)}`, one entry per sample, into `Targets`.

    This takes a few launches, whatever the number of samples, and does not wait for the device.

    Args:
        targets: A mapping for each sample, of tensors, NumPy arrays or lists of numbers. It may have "class_labels", as
            in Hugging Face's transformers, in place of "labels". Labels may also be (m, K), with -1 behind the last of
            a target, or a list of numbers for each target. Boxes may also be (m, T, 4): the result is then `Tubelets`,
            and "visible" (m, T) bool may be left out if all frames are. A sample without targets may have empty lists.
            If no sample has any, boxes of shape (0, T, 4) say that they are tubelets.
        device: The device of the result. The default is that of the first sample's labels.
        max_targets: The padded length M, which keeps one shape for a whole training. The default is the largest number
            of targets in a sample, at least 1.
        max_labels: The K of labels (B, M, K), likewise. The default is the largest K of the samples, and labels are
            (B, M) if those of all samples are (m,).

    Returns:
        `Targets`, or `Tubelets` if boxes are over several frames. Boxes have the widest dtype of the samples'.

    Raises:
        ValueError: A sample cannot be read, its labels and boxes disagree, or it has more targets than `max_targets` or
            more labels than `max_labels`. The text names the sample.
    """
    labels = [_labels_tensor(index, sample) for index, sample in enumerate(targets)]
    boxes = [_tensor(index, sample, "boxes") for index, sample in enumerate(targets)]
    counts = [len(each) for each in labels]

    # Boxes with three dimensions are tubelets. If there are any, those of all samples must have as many frames, unless
    # they are empty.
    tubelets = [each for each in boxes if each.ndim == 3 and each.shape[2] == 4]
    frames = tuple(max(tubelets, key=len).shape[1:2]) if tubelets else ()
    boxes = [_boxes_of(index, each, counts[index], frames) for index, each in enumerate(boxes)]

    longest = max(counts, default=0)
    size = max(longest, 1) if max_targets is None else max_targets
    if longest > size:
        raise ValueError(f"targets[{counts.index(longest)}]: {longest} targets, but max_targets={size}")
    labels = _of_one_width(labels, max_labels)

    # All samples are concatenated behind a row of zeros, and one indexing takes the rows of each sample out of that.
    # The index of padding is 0, that row of zeros.
    own = labels[0].device if labels else torch.device("cpu")
    dtype = _common_dtype(boxes)
    ends = itertools.accumulate(counts)
    rows = [
        [1 + end - count + row if row < count else 0 for row in range(size)]
        for end, count in zip(ends, counts, strict=True)
    ]
    index = torch.tensor(rows, dtype=torch.int64).reshape(len(targets), size).to(own, non_blocking=True)
    number = torch.tensor(counts, dtype=torch.int32)

    several = labels[0].shape[1:] if labels else () if max_labels is None else (max_labels,)
    no_label = torch.zeros(1, *several, dtype=torch.int64, device=own)
    no_box = torch.zeros(1, *frames, 4, dtype=dtype, device=own)
    all_labels = torch.cat([no_label, *(each.to(own, torch.int64) for each in labels)])
    all_boxes = torch.cat([no_box, *(each.to(own, dtype) for each in boxes)])
    padded = Targets(all_labels[index], all_boxes[index], number)

    if frames:
        visible = [_visible_of(place, sample, counts[place], frames, own) for place, sample in enumerate(targets)]
        nowhere = torch.zeros(1, *frames, dtype=torch.bool, device=own)
        padded = Tubelets(*padded, torch.cat([nowhere, *visible])[index])

    return padded.to(own if device is None else device, non_blocking=True)


def _labels_tensor(index: int, sample: Mapping[str, Any]) -> Tensor:
    """Return the labels of a sample, (m,) or (m, K) of an integer dtype, or of any dtype if there are none."""
    if not isinstance(sample, Mapping):
        raise ValueError(f"targets[{index}] must be a mapping with labels and boxes, got {type(sample).__name__}")
    name = "class_labels" if "class_labels" in sample else "labels"
    labels = _tensor(index, _with_equal_rows(sample, name), name)
    # Empty labels may have any dtype, because `torch.tensor([])` is float32.
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    fits = labels.ndim == 1 or (labels.ndim == 2 and (labels.shape[1] > 0 or len(labels) == 0))
    if not fits or not (whole or len(labels) == 0):
        raise ValueError(
            f"targets[{index}]: labels must be (m,) or (m, K) integers, got {tuple(labels.shape)} {labels.dtype}"
        )
    return labels


def _with_equal_rows(sample: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the sample. If its labels are a list of lists, the shorter ones are filled up with -1."""
    rows = sample.get(name)
    if not isinstance(rows, list | tuple) or not rows or not all(isinstance(row, list | tuple) for row in rows):
        return sample
    width = max(map(len, rows))
    return {**sample, name: [[*row, *[-1] * (width - len(row))] for row in rows]}


def _of_one_width(labels: list[Tensor], max_labels: int | None) -> list[Tensor]:
    """Return the labels of all samples as (m,), or all of them as (m, K) with the same K."""
    if max_labels is None and all(each.ndim == 1 for each in labels):
        return labels

    # The width of empty labels means nothing.
    widths = [each.shape[1] if each.ndim == 2 and len(each) else 1 for each in labels]
    widest = max(widths, default=1)
    width = widest if max_labels is None else max_labels
    if widest > width:
        raise ValueError(f"targets[{widths.index(widest)}]: {widest} labels of a target, but max_labels={width}")

    wide = [each.reshape(len(each), widths[index]) for index, each in enumerate(labels)]
    return [F.pad(each, (0, width - each.shape[1]), value=-1) for each in wide]


def _tensor(index: int, sample: Mapping[str, Any], name: str) -> Tensor:
    """Return the field of a sample: a tensor as it is, and anything else as PyTorch reads it."""
    if name not in sample:
        raise ValueError(f"targets[{index}] has no {name}; it has {', '.join(map(str, sample)) or 'nothing'}")

    value = sample[name]
    try:
        if isinstance(value, list | tuple) and value and all(isinstance(item, Tensor) for item in value):
            return torch.stack(list(value))
        return torch.as_tensor(value)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"targets[{index}]: {name} cannot be read as numbers: {error}") from error


def _boxes_of(index: int, boxes: Tensor, count: int, frames: tuple[int, ...]) -> Tensor:
    """Return the boxes of a sample as (m, 4), or as (m, T, 4) if `frames` is (T,)."""
    wanted = (count, *frames, 4)
    # A sample without targets may give an empty tensor of any shape.
    if count == 0 and boxes.shape[:1] == (0,):
        return boxes.reshape(wanted)
    if boxes.shape != wanted:
        raise ValueError(
            f"targets[{index}]: boxes must be {wanted} to go with {count} labels"
            f"{' and the frames of other samples' if frames else ''}, got {tuple(boxes.shape)}"
        )
    return boxes


def _visible_of(
    index: int, sample: Mapping[str, Any], count: int, frames: tuple[int, ...], device: torch.device
) -> Tensor:
    """Return which frames of a sample's tubelets are visible, (m, T) bool on `device`. By default all of them are."""
    if "visible" not in sample or count == 0:
        return torch.ones(count, *frames, dtype=torch.bool, device=device)
    visible = _tensor(index, sample, "visible")
    if visible.shape != (count, *frames) or visible.dtype != torch.bool:
        raise ValueError(
            f"targets[{index}]: visible must be {(count, *frames)} bool, got {tuple(visible.shape)} {visible.dtype}"
        )
    return visible.to(device)


def _common_dtype(boxes: list[Tensor]) -> torch.dtype:
    """Return the widest dtype of the boxes of all samples.

    Samples without boxes count only if no sample has any, because an empty list is float32 whatever the others are.
    """
    known = [each.dtype for each in boxes if len(each) > 0] or [each.dtype for each in boxes]
    floating = {dtype for dtype in known if dtype.is_floating_point}
    return functools.reduce(torch.promote_types, floating) if floating else torch.float32


def check_predictions(logits: Tensor, boxes: Tensor, targets: Targets | Tubelets) -> None:
    """Raise ValueError if predictions and targets disagree.

    This looks at shapes, dtypes and devices and never at values, so it does not wait for the device.

    Args:
        logits: (..., B, N, C) floating point; with `Tubelets` also (..., B, N, T, C).
        boxes: (..., B, N, 4) floating point with `Targets`, (..., B, N, T, 4) with `Tubelets`.
        targets: B samples of M rows.
    """
    of_tubelets = isinstance(targets, Tubelets)
    frames = boxes.shape[-2:-1] if of_tubelets else ()
    if has_frame_logits(logits, boxes, of_tubelets):
        agree = logits.ndim > 3 and boxes.shape == (*logits.shape[:-1], 4)
    else:
        agree = logits.ndim > 2 and boxes.shape == (*logits.shape[:-1], *frames, 4)
    if not agree:
        expected = "(..., B, N, C) or (..., B, N, T, C)" if of_tubelets else "(..., B, N, C)"
        raise ValueError(
            f"logits {expected} and boxes (..., B, N, {'T, ' if of_tubelets else ''}4) "
            f"must agree, got {tuple(logits.shape)} and {tuple(boxes.shape)}"
        )
    if boxes.device != logits.device:
        raise ValueError(f"boxes are on {boxes.device}, logits on {logits.device}")
    if logits.shape[-1] == 0:
        raise ValueError(f"logits (..., B, N, C) must have a class, got {tuple(logits.shape)}")

    batch = query_shape(boxes, of_tubelets)[-2]
    size = targets.labels.shape[1] if targets.labels.ndim > 1 else 0
    each_frame = targets.labels.ndim == 4 and has_frame_logits(logits, boxes, of_tubelets)
    several = targets.labels.shape[-1:] if targets.labels.ndim == 3 + each_frame and targets.labels.shape[-1] else ()
    wanted = {
        "labels": (batch, size, *(frames if each_frame else ()), *several),
        "boxes": (batch, size, *frames, 4),
        "counts": (batch,),
    }
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


def query_shape(boxes: Tensor, of_tubelets: bool) -> torch.Size:
    """Return (..., B, N), given the predicted boxes (..., B, N, 4), or (..., B, N, T, 4) of tubelets."""
    return boxes.shape[: -2 if of_tubelets else -1]


def has_frame_logits(logits: Tensor, boxes: Tensor, of_tubelets: bool) -> bool:
    """Return whether the logits are those of each frame of tubelets, (..., B, N, T, C), given the predicted boxes."""
    return of_tubelets and logits.ndim == boxes.ndim


def has_frame_labels(targets: Targets | Tubelets) -> bool:
    """Return whether targets have labels of each frame, (B, M, T, K)."""
    return targets.labels.ndim == 4


def labels_each(targets: Targets | Tubelets) -> int:
    """Return the number of labels that are stored for each target, or for each in each frame."""
    return targets.labels.shape[-1] if targets.labels.ndim > 2 else 1


def check_values(targets: Targets | Tubelets, classes: int) -> None:
    """Raise a ValueError that names the sample if a count or a label is out of range, or a target has a label twice.

    This waits for the device.

    Args:
        targets: B samples of M rows.
        classes: The number of logits; labels must be below it.
    """
    check_counts("targets.counts", targets.counts, targets.labels.shape[1])

    labels = targets.labels if targets.labels.ndim > 2 else targets.labels[..., None]
    real = valid_rows(targets)[..., None]
    if isinstance(targets, Tubelets) and has_frame_labels(targets):
        real = (real & targets.visible)[..., None]
    wrong = real & ((labels < 0) | (labels >= classes))
    # All labels of a target but the first may be -1, which means none.
    wrong[..., 1:] &= labels[..., 1:] != -1
    for place in wrong.nonzero()[:1].tolist():
        shown = place[: targets.labels.ndim]
        raise ValueError(f"targets.labels{shown} must be 0 to {classes - 1}, got {labels[tuple(place)].item()}")

    in_order = labels.sort(-1).values
    twice = real & (in_order[..., 1:] == in_order[..., :-1]) & (in_order[..., 1:] >= 0)
    for place in twice.nonzero()[:1].tolist():
        raise ValueError(f"targets.labels{place[:-1]} has label {in_order[tuple(place)].item()} twice")


def check_counts(name: str, counts: Tensor, size: int) -> None:
    """Raise a ValueError that names the sample if a count is not in [0, size]. This waits for the device."""
    for sample, count in enumerate(counts.tolist()):
        if not 0 <= count <= size:
            raise ValueError(f"{name}[{sample}] must be 0 to {size}, got {count}")
