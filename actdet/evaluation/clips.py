"""The evaluation of a detector on clips with annotations: metrics, and what it said of every clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from actdet_kernels import Targets

from actdet.data.loader import ClipLoader
from actdet.distributed import ALONE, Processes
from actdet.errors import ActdetError
from actdet.evaluation.metrics import Metrics, decided_iou, measure, true_labels
from actdet.models.detr.config import LossConfig
from actdet.models.detr.decision import Decision, decide
from actdet.models.detr.detector import ActionDetector, Predictions

BATCH_SIZE = 8


@dataclass(frozen=True)
class Evaluation:
    """Metrics over n clips, and clip by clip, in the order in which they were asked for."""

    clips: list[int]
    """The clips, by their numbers in the index; without those that the loader left out."""
    metrics: Metrics
    decision: Decision
    """(n,) label, score and box of each clip."""
    truth: torch.Tensor
    """(n,) true class, the number of action classes for no action; of several the decided one, if it is among them,
    else the lowest."""
    iou: torch.Tensor
    """(n,) overlap of the decided box with the annotated one of that class, 0 where there is none."""
    targets: Targets


def evaluate(
    detector: ActionDetector,
    loader: ClipLoader,
    ids: Sequence[int],
    loss: LossConfig,
    dtype: torch.dtype,
    processes: Processes = ALONE,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Run `detector` on the clips `ids` in `dtype` arithmetic and measure what it says.

    Of several processes each takes its share of the clips, none twice, and all return what was found of all.
    progress: called with (clips done, clips in all) after each batch.
    """
    own, found = processes.share(ids), []
    for batch in loader.eval_batches(own, BATCH_SIZE):
        predictions = predict_batch(detector, batch.clips, dtype).final()
        found += zip(*(field.cpu() for field in (*predictions, *batch.targets)), strict=True)
        if progress is not None:
            progress(len(found), len(ids))
    readable = [clip for clip in own if clip not in loader.left_out]
    by_clip = {
        clip: fields for part in processes.gather(list(zip(readable, found, strict=True))) for clip, fields in part
    }
    clips = [clip for clip in ids if clip in by_clip]
    if not clips:
        raise ActdetError(f"none of the {len(ids)} clips to evaluate on can be read")
    logits, boxes, *fields = map(torch.stack, zip(*(by_clip[clip] for clip in clips), strict=True))
    if not (logits.isfinite().all() and boxes.isfinite().all()):
        raise ActdetError("what the detector says is not finite: its weights are damaged, or its training failed")
    final, wanted = Predictions(logits, boxes), Targets(*fields)
    decision = decide(*final, no_object_weight=loss.no_object_weight)
    names = detector.config.class_names
    return Evaluation(
        clips=clips,
        metrics=measure(Predictions(final.logits[None], final.boxes[None]), wanted, names, loss),
        decision=decision,
        truth=true_labels(wanted, len(names), decision.label),
        iou=decided_iou(decision, wanted),
        targets=wanted,
    )


@torch.inference_mode()
def predict_batch(detector: ActionDetector, clips: torch.Tensor, dtype: torch.dtype) -> Predictions:
    """`detector` in evaluation mode on normalised clips (B, 3, T, S, S), with `dtype` arithmetic in the network."""
    detector.eval()
    with torch.autocast(clips.device.type, dtype, enabled=dtype != torch.float32):
        return detector(clips)
