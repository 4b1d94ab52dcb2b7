"""The rule that turns maps into tubelets: the highest peaks among the centers, followed to every frame of a snippet.

    score of a tubelet and a class = probability of the center x probability of the class

Two peaks may be of one actor. So of the tubelets of a snippet that overlap, only the one of the highest score counts,
and likewise of a clip's actions, which are found in several snippets.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from actdet_kernels import assign, center_peaks, suppress_overlaps
from torch import Tensor
from torchvision.ops import batched_nms, box_convert, box_iou

from actdet.data.truth import TubeTargets
from actdet.detections import Action
from actdet.models.family import Assessment, Candidates, Decision, Detections, Tracks
from actdet.models.stma.config import StmaConfig, StmaLoss
from actdet.models.stma.losses import stma_losses
from actdet.models.stma.maps import SnippetMaps, snippet_starts

# So many centers are looked for in a snippet (section 2.5 of the paper).
_PEAKS = 10

# Of boxes and tubelets that overlap by more than this IoU, one counts (ACT, Kalogeiton et al. 2017).
_SAME = 0.3


class Tubelets(NamedTuple):
    """The N tubelets of each of n snippets of B clips."""

    scores: Tensor
    """(B, n, N, K, A), of each class, the same in all frames; 0 if another tubelet counts instead."""
    boxes: Tensor
    """(B, n, N, K, 4) x1 y1 x2 y2 in [0, 1]."""


def tubelets(maps: SnippetMaps, config: StmaConfig) -> Tubelets:
    """Find the tubelets of all snippets. On a GPU the host reads nothing back."""
    clips = maps.centers.shape[:2]
    peaks = center_peaks(maps.as_samples(), peaks=_PEAKS, moved=config.moving_sizes)
    if config.class_agnostic:
        likely = peaks.classes.softmax(-1)
    else:
        likely = F.one_hot(peaks.channels, len(config.class_names)).to(peaks.scores.dtype)
    scores = peaks.scores[..., None] * likely
    boxes = box_convert(peaks.boxes, "cxcywh", "xyxy").clamp(0, 1)
    scores = scores.where(suppress_overlaps(boxes, scores, iou_threshold=_SAME), 0.0)
    of_frames = scores[:, :, None].expand(-1, -1, config.snippet, -1)
    return Tubelets(of_frames.unflatten(0, clips), boxes.unflatten(0, clips))


def detections(maps: SnippetMaps, config: StmaConfig, *, threshold: float) -> Detections:
    """Find the actions of B clips, as the contract of the families says it."""
    found = tubelets(maps, config)
    parts = tuple(map(Tracks, found.scores.unbind(1), found.boxes.unbind(1), snippet_starts(config)))

    # The surest action of each clip. (B, n * N, A) and (B, n * N, 4)
    scores = found.scores[:, :, :, 0].flatten(1, 2)
    boxes = _around(found.boxes).flatten(1, 2)
    classes = scores.shape[-1]
    score, place = scores.flatten(1).max(-1)
    label = place % classes
    clip = torch.arange(len(place), device=place.device)
    box = box_convert(boxes[clip, place // classes], "xyxy", "cxcywh")
    decision = Decision(torch.where(score >= threshold, label, classes), score, box, label)
    return Detections(decision, _actions(scores, boxes, threshold), parts)


def _around(boxes: Tensor) -> Tensor:
    """(..., K, 4) x1 y1 x2 y2 to (..., 4), the box around all K."""
    return torch.cat([boxes[..., :2].amin(-2), boxes[..., 2:].amax(-2)], -1)


def _actions(scores: Tensor, boxes: Tensor, threshold: float) -> list[tuple[Action, ...]]:
    """Return the actions of each clip whose score reaches the threshold, the surest first.

    Args:
        scores: (B, N, A) of each class.
        boxes: (B, N, 4) x1 y1 x2 y2.
        threshold: The lowest score.
    """
    scores = scores.cpu()
    boxes = boxes.cpu()
    result = []
    for of_clip, places in zip(scores, boxes, strict=True):
        which, label = (of_clip >= threshold).nonzero(as_tuple=True)
        found = of_clip[which, label]
        kept = batched_nms(places[which], found, label, _SAME)
        corners = places[which[kept]].tolist()
        result.append(
            tuple(
                Action(its_label, its_score, (x1, y1, x2, y2))
                for its_label, its_score, (x1, y1, x2, y2) in zip(
                    label[kept].tolist(), found[kept].tolist(), corners, strict=True
                )
            )
        )
    return result


def assess(
    final: SnippetMaps, targets: TubeTargets, config: StmaConfig, weights: StmaLoss, *, threshold: float
) -> Assessment:
    """Compare what the network says of n clips with the truth, on the CPU in float32."""
    final = SnippetMaps(*(maps.detach().to("cpu", torch.float32) for maps in final))
    targets = targets.to("cpu")
    answers = detections(final, config, threshold=threshold)

    # Each tubelet is a candidate for the action that it is surest of.
    found = tubelets(final, config)
    confidence, label = found.scores[:, :, :, 0].flatten(1, 2).max(-1)
    boxes = _around(found.boxes).flatten(1, 2)

    # What training compares with an action is a pixel, not a tubelet: here it is the tubelets that overlap most.
    truth = targets.clip_boxes
    corners = box_convert(truth.boxes, "cxcywh", "xyxy")
    overlaps = torch.stack([box_iou(*pair) for pair in zip(boxes, corners, strict=True)])
    matched = assign(1 - overlaps, truth.counts)
    losses = stma_losses(final, targets, config, weights)
    return Assessment(
        detections=answers,
        candidates=Candidates(label, confidence, box_convert(boxes, "xyxy", "cxcywh")),
        targets=truth,
        matched=matched,
        losses={name: value.item() for name, value in losses.items()},
    )
