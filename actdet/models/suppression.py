"""Non-maximum suppression of tubelets, for families whose answers may hold an actor several times.

This is the rule of ACT (Kalogeiton et al., ICCV 2017) within one forward pass: class by class, the tubelet of the
highest score suppresses those that overlap it by a mean IoU of more than a threshold, 0.3 there; the next one of those
that are left does the same, and so on. `actdet.evaluation.suppression` does it to tables of answers, on the host.
"""

from __future__ import annotations

import torch
from torch import Tensor


def suppress_tracks(scores: Tensor, boxes: Tensor, threshold: float) -> Tensor:
    """Take the score of a class from tubelets that overlap a surer one of it, without waiting for the device.

    Tubelets of a class are ranked by the mean of its score over the frames; among equals, the earlier row is first.

    Args:
        scores: (B, S, K, C), at least 0, of S tubelets of each clip in K frames, for each class.
        boxes: (B, S, K, 4) x1 y1 x2 y2.
        threshold: A tubelet is suppressed if its mean IoU with a better one, over the frames, is more than this.

    Returns:
        The scores, (B, S, K, C), where those of a class are 0 if the tubelet is suppressed in it.
    """
    # (B, C, S), where row r says of the r-th best tubelet of each class which it is.
    order = scores.float().mean(2).transpose(1, 2).argsort(dim=-1, descending=True, stable=True)

    # (B, C, S, S): whether the tubelet that is better by rank, the row, overlaps the other one, the column.
    classes, tubelets = order.shape[1:]
    is_near = (_mean_iou(boxes.float()) > threshold)[:, None].expand(-1, classes, -1, -1)
    is_near = is_near.gather(2, order[..., None].expand(-1, -1, -1, tubelets))
    is_near = is_near.gather(3, order[:, :, None].expand(-1, -1, tubelets, -1)).triu(1)

    kept = torch.ones_like(order, dtype=torch.bool)
    for rank in range(tubelets):
        kept = kept & ~(kept[..., rank, None] & is_near[..., rank, :])

    # Back from ranks to rows.
    kept = kept.gather(-1, order.argsort(-1)).transpose(1, 2)
    return scores * kept[:, :, None]


def _mean_iou(boxes: Tensor) -> Tensor:
    """The mean IoU over K frames of all pairs of S tubelets: (B, S, K, 4) to (B, S, S). Of no area, it is 0."""
    low, high = boxes.split(2, -1)
    sides = torch.minimum(high[:, :, None], high[:, None]) - torch.maximum(low[:, :, None], low[:, None])
    shared = sides.clamp(min=0).prod(-1)
    area = (high - low).clamp(min=0).prod(-1)
    union = area[:, :, None] + area[:, None] - shared
    return torch.where(union > 0, shared / union, 0.0).mean(-1)
