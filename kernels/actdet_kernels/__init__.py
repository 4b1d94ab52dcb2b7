"""actdet_kernels: bipartite matching and set losses for detectors that predict sets (DETR and its family).

targets = pad_targets([{"labels": labels, "boxes": boxes}, ...])     # once, anywhere
matched = match(logits, boxes, targets)                              # (..., B, M) query of each target
loss = set_loss(logits, boxes, targets, matched)
loss.total.backward()

And the batches they train on: gather_clips(frames, indices, ...), out of cached frames of video.
"""

from actdet_kernels.backend import explain_backend
from actdet_kernels.denoising import DenoisingQueries, denoising_queries, split_groups
from actdet_kernels.operations import (
    Assignment,
    Matching,
    MatchWeights,
    SetLoss,
    assign,
    frame_levels,
    gather_clips,
    giou_loss,
    match,
    pairwise_cost,
    pairwise_giou,
    set_loss,
    solve_assignment,
    solve_matching,
)
from actdet_kernels.targets import Targets, Tubelets, pad_targets, repeat_targets

__all__ = [
    "Assignment",
    "DenoisingQueries",
    "MatchWeights",
    "Matching",
    "SetLoss",
    "Targets",
    "Tubelets",
    "assign",
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
]
