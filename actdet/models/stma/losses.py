"""The losses that train STMA: those of the kernels, for each snippet of a clip (eq. 3 to 9 of the paper).

The centers of actors are found in the key frame of a snippet, so whoever is not visible there is no target of it.
"""

from __future__ import annotations

import torch
from actdet_kernels import CenterLoss, CenterWeights, Tubelets, center_loss
from torch import Tensor

from actdet.data.truth import TubeTargets
from actdet.distributed import ALONE, Processes
from actdet.models.stma.config import StmaConfig, StmaLoss
from actdet.models.stma.maps import SnippetMaps, key_frame, snippet_starts

# The losses by name. The first one is what is minimized.
LOSSES = ("total", "cls", "center", "movement", "size")

# A logit whose probability is 0 in any floating-point type.
_NEVER = -1e4

# The sides of a pixel of the maps in pixels of the picture.
STRIDE = 4


def snippet_targets(targets: TubeTargets, config: StmaConfig) -> Tubelets:
    """Return the actors in the n snippets of B clips, as B * n samples."""
    starts = snippet_starts(config)
    count = len(starts)
    spans = [slice(start, start + config.snippet) for start in starts]
    return Tubelets(
        targets.labels.repeat_interleave(count, 0),
        torch.stack([targets.boxes[:, :, span] for span in spans], 1).flatten(0, 1),
        targets.counts.repeat_interleave(count, 0),
        torch.stack([targets.visible[:, :, span] for span in spans], 1).flatten(0, 1),
    )


def stma_losses(
    maps: SnippetMaps, targets: TubeTargets, config: StmaConfig, weights: StmaLoss, processes: Processes = ALONE
) -> dict[str, Tensor]:
    """Compute the losses of a batch. On a GPU the host reads nothing back.

    Args:
        maps: What the network says.
        targets: The actions in the B clips.
        config: The shape of the network.
        weights: The weights of the terms.
        processes: The processes that share the batch. The losses are then of this process's share, and their mean over
            the processes is that of the whole batch.

    Returns:
        0-d tensors by the names in `LOSSES`.
    """
    key = key_frame(config)
    if targets.is_sparse:
        # Nobody knows who is in a key frame that is not annotated; a probability of 0 costs nothing there.
        known = torch.stack([targets.annotated[:, start + key] for start in snippet_starts(config)], 1)
        maps = maps._replace(centers=torch.where(known[..., None, None, None], maps.centers, _NEVER))

    wanted = snippet_targets(targets, config)
    loss = center_loss(
        maps.as_samples(),
        wanted,
        weights=CenterWeights(
            classes=weights.cls_weight,
            centers=weights.center_weight,
            movement=weights.movement_weight,
            sizes=weights.size_weight,
        ),
        key=key,
        radius=weights.center_radius,
        movement_area=weights.movement_area,
        size_area=weights.size_area,
        moved=config.moving_sizes,
        stride=STRIDE,
    )
    if processes.count > 1:
        loss = _share_of_batch(loss, wanted, key, weights, processes)
    return dict(zip(LOSSES, (loss.total, loss.classes, loss.centers, loss.movement, loss.sizes), strict=True))


def _share_of_batch(
    loss: CenterLoss, wanted: Tubelets, key: int, weights: StmaLoss, processes: Processes
) -> CenterLoss:
    """Divide the losses by what all processes have of the batch, instead of this one alone."""
    actors = (wanted.valid & wanted.visible[:, :, key]).sum()
    # Where there are no actors, divisors are 1 instead of 0.
    own = torch.where(actors > 0, loss.divisors, 0)
    total = processes.sum(own)
    of_actors, of_movement, of_sizes = loss.divisors * processes.count / torch.where(total > 0, total, 1)
    classes = loss.classes * of_actors
    centers = loss.centers * of_actors
    movement = loss.movement * of_movement
    sizes = loss.sizes * of_sizes
    terms = torch.stack([classes, centers, movement, sizes])
    scales = torch.stack([torch.full_like(classes, weight) for weight in weights.term_weights().values()])
    return CenterLoss((terms * scales).sum(), classes, centers, movement, sizes, loss.divisors)
