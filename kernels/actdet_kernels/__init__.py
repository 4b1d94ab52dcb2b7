"""actdet_kernels: bipartite matching and set losses for detectors that predict sets (DETR and its family).

targets = pad_targets([{"labels": labels, "boxes": boxes}, ...])  # once per batch, on any device
matched = match(logits, boxes, targets)  # (..., B, M), the query of each target
loss = set_loss(logits, boxes, targets, matched)
loss.total.backward()

There are more operations for training on video: gather_clips(frames, indices, ...) makes batches out of cached frames,
batch_norm(features, ..., relu=True) does what causes half of the memory traffic of a convolutional network,
deformable_attention(values, points, weights, sizes) reads features where queries want to look, and center_loss(maps,
targets) and center_peaks(maps) are the loss and the answer of detectors that find tubelets by their centers.
suppress_overlaps(boxes, scores, ...) keeps the surest of boxes that overlap.

Each operation has a file with its function, checks, operator, shapes and derivative. No file has the name of an
operation, because importing it would replace the function of that name in this package by the module.

Shapes: L (any number of leading dimensions, usually the supervised decoder layers), B samples, N queries, M padded
targets, C logits, T frames. Wherever boxes are (..., B, N, 4) with `Targets`, they may be (..., B, N, T, 4) with
`Tubelets`. Equations are those of the fight-and-collapse technical report (Saun and Sharma 2026), which follows DETR
(Carion et al. 2020).
"""

from actdet_kernels.assignment import Assignment, assign, solve_assignment
from actdet_kernels.backend import explain_backend
from actdet_kernels.centers import CenterLoss, CenterMaps, CenterWeights, center_loss
from actdet_kernels.clips import frame_levels, gather_clips
from actdet_kernels.cost import MatchWeights, pairwise_cost
from actdet_kernels.deformable import deformable_attention
from actdet_kernels.denoising import DenoisingQueries, denoising_queries, split_groups
from actdet_kernels.giou import giou_loss, pairwise_giou
from actdet_kernels.loss import SetLoss, set_loss
from actdet_kernels.matching import Matching, match, solve_matching
from actdet_kernels.norm import batch_norm
from actdet_kernels.peaks import Peaks, center_peaks
from actdet_kernels.suppression import suppress_overlaps
from actdet_kernels.targets import Targets, Tubelets, pad_targets, repeat_targets

__all__ = [
    "Assignment",
    "CenterLoss",
    "CenterMaps",
    "CenterWeights",
    "DenoisingQueries",
    "MatchWeights",
    "Matching",
    "Peaks",
    "SetLoss",
    "Targets",
    "Tubelets",
    "assign",
    "batch_norm",
    "center_loss",
    "center_peaks",
    "deformable_attention",
    "denoising_queries",
    "explain_backend",
    "frame_levels",
    "gather_clips",
    "giou_loss",
    "match",
    "pad_targets",
    "pairwise_cost",
    "pairwise_giou",
    "repeat_targets",
    "set_loss",
    "solve_assignment",
    "solve_matching",
    "split_groups",
    "suppress_overlaps",
]
