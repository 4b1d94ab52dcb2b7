"""Evaluates a detector on annotated clips: metrics over all of them, and the answer to every single one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from actdet_kernels import Targets
from actdet_kernels.reference import IMAGENET_MEAN, IMAGENET_STD
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d

from actdet.data.loader import ClipLoader
from actdet.data.truth import AnyTargets
from actdet.detections import Action
from actdet.distributed import ALONE, Processes
from actdet.errors import ActdetError
from actdet.evaluation.metrics import Metrics, decided_iou, measure, true_labels
from actdet.evaluation.tube_metrics import measure_tubes
from actdet.models.config import LossSettings
from actdet.models.family import Decision, FamilyNetwork, Tracks
from actdet.video.cuts import CELLS, has_cut

# So many clips go through the network together.
BATCH_SIZE = 8


@dataclass(frozen=True)
class Evaluation:
    """Metrics over n clips, and what was found clip by clip, in the order in which the clips were given."""

    clips: list[int]
    """The clips, by their numbers in the index, without those that the loader left out."""
    metrics: Metrics
    decision: Decision
    """(n,) label, score and box of each clip."""
    actions: list[tuple[Action, ...]]
    """The set of actions of each of the n clips, the surest first."""
    cuts: list[bool]
    """Whether the picture changes to another scene in each of the n clips. Scores are not reliable there."""
    truth: Tensor
    """(n,) int64, the true class of each clip; the number of action classes means no action. Of several annotated
    classes it is the decided one if that is among them, else the lowest."""
    iou: Tensor
    """(n,) overlap of the decided box with the annotated box of that class; 0 if there is none."""
    targets: Targets
    """The annotations of the n clips, with one box for each action."""
    frames: int
    """T, how many frames of a clip the detector sees."""
    tracks: tuple[Tracks, ...] = ()
    """What the detector says of the frames of the n clips, part by part, if it follows actors from frame to frame."""
    rule: str = ""
    """How the detector decides, in sentences for people."""


def evaluate(
    detector: FamilyNetwork,
    loader: ClipLoader,
    ids: Sequence[int],
    loss: LossSettings,
    dtype: torch.dtype,
    processes: Processes = ALONE,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Run a detector on clips and measure its answers.

    Args:
        detector: The detector; it is switched to evaluation mode.
        loader: Reads the clips.
        ids: The clips, by their numbers in the loader's index.
        loss: The settings of the losses that the detector was trained with. The rule that decides may need them, too.
        dtype: Arithmetic of the network.
        processes: The processes that share the work. Each takes some of the clips, none is taken twice, and all
            processes return the same.
        progress: Called with (clips done, clips in all) after each batch.

    Raises:
        ActdetError: If no clip can be read, or the detector's output is not finite.
    """
    own = processes.share(ids)
    rows: list[tuple[Any, AnyTargets, bool]] = []
    for batch in loader.eval_batches(own, BATCH_SIZE):
        outputs = predict_batch(detector, batch.clips, dtype)
        rows += zip(_split(outputs), _split(batch.targets), _have_cuts(batch.clips), strict=True)
        if progress is not None:
            progress(len(rows), len(ids))

    # The loader skips clips that cannot be read, so they have no row.
    readable = [clip for clip in own if clip not in loader.left_out]
    parts = processes.gather(list(zip(readable, rows, strict=True)))
    row_of = {clip: row for part in parts for clip, row in part}
    clips = [clip for clip in ids if clip in row_of]
    if not clips:
        raise ActdetError(f"none of the {len(ids)} clips to evaluate can be read")

    outputs = _stack([row_of[clip][0] for clip in clips])
    targets = _stack([row_of[clip][1] for clip in clips])
    # Not batch by batch: all processes must raise the error, since the others would wait for one that does.
    check_finite(outputs)

    class_names = detector.config.class_names
    assessment = detector.assess(outputs, targets, loss)
    decision = assessment.detections.decision
    boxes = assessment.targets
    metrics = measure(assessment, class_names, loss.term_weights())
    frames = detector.config.frames
    tracks = assessment.detections.tracks
    if tracks:
        metrics = replace(metrics, tubes=measure_tubes(loader.index, clips, tracks, frames))
    return Evaluation(
        clips=clips,
        metrics=metrics,
        decision=decision,
        actions=assessment.detections.actions,
        cuts=[row_of[clip][2] for clip in clips],
        truth=true_labels(boxes, len(class_names), decision.label),
        iou=decided_iou(decision, boxes),
        targets=boxes,
        frames=frames,
        tracks=tracks,
        rule=detector.rule,
    )


def check_finite(outputs: Any) -> None:
    """Raise ActdetError unless all numbers of a NamedTuple of tensors are finite."""
    if not all(tensor.isfinite().all() for tensor in outputs):
        raise ActdetError("the detector's output is not finite: its weights are damaged, or its training failed")


def _split(batch: Any) -> Iterator[Any]:
    """Yield a NamedTuple of tensors, on the CPU, for each clip of one whose first dimension is the clips."""
    for tensors in zip(*(tensor.cpu() for tensor in batch), strict=True):
        yield type(batch)(*tensors)


def _stack(rows: Sequence[Any]) -> Any:
    """Undo `_split`."""
    return type(rows[0])(*map(torch.stack, zip(*rows, strict=True)))


def _have_cuts(clips: Tensor) -> list[bool]:
    """Whether the picture changes to another scene in each of the normalized clips (B, 3, T, S, S)."""
    cells = adaptive_avg_pool3d(clips.float(), (clips.shape[2], CELLS, CELLS)).cpu()
    mean = torch.tensor(IMAGENET_MEAN).view(3, 1, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(3, 1, 1, 1)
    pictures = 255 * (cells * std + mean)
    return [has_cut(clip) for clip in pictures.permute(0, 2, 3, 4, 1).numpy()]


@torch.inference_mode()
def predict_batch(detector: FamilyNetwork, clips: Tensor, dtype: torch.dtype) -> Any:
    """The final outputs of `detector`, in evaluation mode: a NamedTuple of tensors whose first dimension is the clips.

    Args:
        detector: The detector; it is switched to evaluation mode.
        clips: (B, 3, T, S, S), normalized as in training.
        dtype: Arithmetic of the network.
    """
    detector.eval()
    with torch.autocast(clips.device.type, dtype, enabled=dtype != torch.float32):
        return detector(clips).final()
