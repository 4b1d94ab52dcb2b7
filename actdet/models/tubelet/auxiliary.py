"""The auxiliary loss of training: every pixel of the features has to tell who does what there, in each frame.

Queries see a few pixels and learn slowly where to look; here all pixels learn at once. The layer is not part of the
detector, and is thrown away with the rest of the training's state.

    stages of the backbone -> 1x1x1 projections, added up -> for each pixel and frame: classes, and a box about it

Each actor in a frame is matched with several pixels (one-to-many, Jia et al. 2023), and the classes have a focal loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from actdet_kernels import Targets, match, repeat_targets, set_loss
from torch import Tensor, nn

from actdet.data.truth import TubeTargets
from actdet.distributed import Processes
from actdet.models.tubelet.config import TubeletConfig, TubeletLoss
from actdet.models.tubelet.features import resample_frames, resize
from actdet.models.tubelet.frames import seen_in_frames
from actdet.models.tubelet.slots import NEVER, RARE

# The channels in which the stages are added up.
_WIDTH = 64

# So many pixels stand for an actor in a frame.
_COPIES = 4

# The center of a pixel's box is at most so far from it, as a share of the picture.
_REACH = 0.25


class PixelHead(nn.Module):
    """The stages of the backbone, (B, C, T', H', W') each, from fine to coarse, to an answer of each pixel.

    The result is (B, T, P, A + 4) float32 for the P pixels of the finest stage: the logits of A classes, and the box
    as cxcywh in [0, 1].

    Args:
        config: The shape of the detector.
        widths: C of each stage.
    """

    def __init__(self, config: TubeletConfig, widths: Sequence[int]) -> None:
        super().__init__()
        self.frames = config.frames
        self.projections = nn.ModuleList(nn.Conv3d(width, _WIDTH, kernel_size=1) for width in widths)
        self.answer = nn.Linear(_WIDTH, len(config.class_names) + 4)
        nn.init.constant_(self.answer.bias[:-4], RARE)

    def forward(self, stages: list[Tensor]) -> Tensor:
        finest, *coarser = (project(stage.float()) for project, stage in zip(self.projections, stages, strict=True))
        for features in coarser:
            finest = finest + resize(features, finest.shape[2:])
        pixels = resample_frames(finest, self.frames).permute(0, 2, 3, 4, 1)
        height, width = pixels.shape[2:4]
        answer = self.answer(pixels.flatten(2, 3).relu())
        logits, offset, sides = answer.split((answer.shape[-1] - 4, 2, 2), -1)

        y = (torch.arange(height, device=answer.device) + 0.5) / height
        x = (torch.arange(width, device=answer.device) + 0.5) / width
        places = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1).flatten(0, 1)
        return torch.cat([logits, places + _REACH * offset.tanh(), sides.sigmoid()], -1)


def pixel_loss(answer: Tensor, targets: TubeTargets, config: TubeletLoss, processes: Processes) -> Tensor:
    """Compare what pixels say with the actors in their frame, 0-d; as the losses of slots, of this process's share.

    Args:
        answer: As `PixelHead` returns it.
        targets: The actors in the B clips.
        config: The weights.
        processes: The processes that share the batch.
    """
    logits = answer[..., :-4]
    if targets.is_sparse:
        # Nobody knows what happens in a frame that is not annotated; a probability of 0 costs nothing there.
        logits = torch.where(targets.annotated[..., None, None], logits, NEVER)
    logits = logits.flatten(0, 1)
    boxes = answer[..., -4:].flatten(0, 1)
    wanted = repeat_targets(seen_in_frames(targets).targets, _COPIES)
    assert isinstance(wanted, Targets)
    weights = config.match_weights
    matched = match(logits, boxes, wanted, weights=weights, class_cost="focal")
    loss = set_loss(logits, boxes, wanted, matched, weights=weights, class_loss="focal").total
    if processes.count == 1:
        return loss
    own = wanted.counts.sum().float()
    return loss * own.clamp(min=1) / processes.sum(own).clamp(min=1) * processes.count
