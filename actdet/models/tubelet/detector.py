"""The tubelet detector: a clip goes in, S slots come out, each of which follows one actor through all frames.

    clip -> backbone -> features of every frame at three scales -> decoder of S slots in T frames -> class and box

This is what sections 2.2 and 7.1 of the technical report ask for, after STAR (Gritsenko et al. 2023): the query of
slot j in frame i is the sum of one for the frame and one for the slot, q_ij = q^t_i + q^s_j, so that a slot is the same
actor in all frames.
"""

from __future__ import annotations

import math

import torch
from actdet_kernels import DenoisingQueries, denoising_queries
from torch import Tensor, nn

from actdet.data.truth import TubeTargets
from actdet.detections import THRESHOLD
from actdet.distributed import ALONE, Processes
from actdet.models.family import Assessment, Detections, FamilyNetwork
from actdet.models.tubelet.auxiliary import PixelHead
from actdet.models.tubelet.config import TubeletConfig, TubeletLoss
from actdet.models.tubelet.decision import assess, detections
from actdet.models.tubelet.decoder import DecoderLayer
from actdet.models.tubelet.features import HIDDEN, Pyramid, frame_backbone
from actdet.models.tubelet.losses import LOSSES, tubelet_losses
from actdet.models.tubelet.slots import RARE, FinalSlots, Slots

# How far the corners of noisy copies are moved, in halves of a box's side; those that stand for no action twice as far.
_BOX_NOISE = 0.5

# Boxes of noisy copies stay so far inside the picture, so that their logits are finite.
_EDGE = 1e-3

# Before training, a slot's box is so wide and so high, as shares of the picture.
_FIRST_SIDES = (0.25, 0.5)


class TubeletDetector(FamilyNetwork[TubeletConfig, Slots]):
    """Clips (B, 3, T, S, S), normalized as `actdet.data.augment` does, to `Slots`.

    Args:
        config: The shape of the network.
    """

    loss_names = LOSSES
    rule = (
        "A slot follows an actor from frame to frame. An action lasts as long as its probability is at least half of "
        "its peak. The score is the mean probability in that time, and the box of a clip is around all boxes in it."
    )

    def __init__(self, config: TubeletConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TubeletConfig()
        self.truth = "actor" if config.multi_label else "tubelet"
        self.backbone = frame_backbone(config)
        widths = self.backbone.widths
        self.pyramid = Pyramid(widths, config.frames, with_places=config.attention == "plain")

        # What says of a query which slot and which frame it is of.
        each = config.frames if config.query_form == "free" else 1
        self.slot_queries = nn.Parameter(torch.randn(config.slots, each, HIDDEN) * 0.5)
        self.frame_queries = None
        if config.query_form == "factorized":
            self.frame_queries = nn.Parameter(torch.randn(config.frames, HIDDEN) * 0.5)
        self.first_boxes = nn.Parameter(_first_boxes(config.slots)[:, None].repeat(1, each, 1))

        # What a noisy copy of an actor says of its class; the last row is for places without an actor.
        labels = torch.randn(len(config.class_names) + 1, HIDDEN) * 0.5
        self.label_queries = nn.Parameter(labels, requires_grad=config.denoising_groups > 0)

        layers = range(config.decoder_layers)
        self.decoder = nn.ModuleList(DecoderLayer(config, len(widths)) for _ in layers)
        classes = len(config.class_names) + (not config.multi_label)
        self.class_heads = nn.ModuleList(_head(classes) for _ in layers)
        self.box_heads = nn.ModuleList(_head(4) for _ in layers)
        for head in self.box_heads:
            # A box starts as it was before the layer.
            nn.init.zeros_(head.get_parameter("2.weight"))
            nn.init.zeros_(head.get_parameter("2.bias"))
        if config.multi_label:
            for head in self.class_heads:
                nn.init.constant_(head.get_parameter("2.bias"), RARE)

    def forward(self, clips: Tensor) -> Slots:
        size = self.config.image_size
        frames = self.config.frames
        if clips.ndim != 5 or clips.shape[1:] != (3, frames, size, size):
            raise ValueError(f"clips must be (B, 3, {frames}, {size}, {size}), got {tuple(clips.shape)}")
        return self.detect(self.backbone(clips))

    def hints(self, targets: TubeTargets) -> DenoisingQueries | None:
        """Make noisy copies of the actors, which the decoder has to clean up."""
        config = self.config
        if not config.denoising_groups:
            return None
        return denoising_queries(
            targets.tubelets._replace(labels=targets.first_labels),
            classes=len(config.class_names),
            queries=config.slots,
            groups=config.denoising_groups,
            box_noise=_BOX_NOISE,
        )

    def detect(self, features: list[Tensor], hints: DenoisingQueries | None = None) -> Slots:
        """Compute what follows the backbone: the features of its last stages to `Slots`."""
        config = self.config
        clips = features[0].shape[0]
        read = self.pyramid(features)

        identity = self.slot_queries if self.frame_queries is None else self.slot_queries + self.frame_queries
        identity = identity.expand(clips, -1, -1, -1)
        before = self.first_boxes.expand(clips, -1, config.frames, -1)

        # A query begins as nothing, so that the heads see only what it has read. With its identity in it the loss fell
        # more slowly.
        queries = torch.zeros_like(identity)
        mask = None
        copies = 0
        if hints is not None:
            # A copy is known by its class, and by its frame if queries say that.
            of_copies = self.label_queries[hints.labels][:, :, None].expand(-1, -1, config.frames, -1)
            if self.frame_queries is not None:
                of_copies = of_copies + self.frame_queries
            identity = torch.cat([of_copies, identity], 1)
            queries = torch.cat([of_copies, queries], 1)
            before = torch.cat([hints.boxes.clamp(_EDGE, 1 - _EDGE).logit(), before], 1)
            mask = hints.mask
            copies = hints.labels.shape[1]

        logits = []
        boxes = []
        for layer, class_head, box_head in zip(self.decoder, self.class_heads, self.box_heads, strict=True):
            queries = layer(queries, identity, before.sigmoid(), read, mask)

            # The 8 bits of mantissa that bf16 has are too few for a coordinate.
            with torch.autocast(queries.device.type, enabled=False):
                decoded = queries.float()
                logits.append(class_head(decoded))
                refined = before + box_head(decoded)
                boxes.append(refined.sigmoid())
            # Each layer learns by its own loss to refine what the one before has found.
            before = refined.detach()

        all_logits = torch.stack(logits)
        all_boxes = torch.stack(boxes)
        if hints is None:
            return Slots(all_logits, all_boxes)
        noisy_logits, own_logits = all_logits.split((copies, config.slots), 2)
        noisy_boxes, own_boxes = all_boxes.split((copies, config.slots), 2)
        return Slots(own_logits, own_boxes, (noisy_logits, noisy_boxes, hints.matched))

    def auxiliary_head(self) -> PixelHead:
        return PixelHead(self.config, self.backbone.widths)

    def losses(
        self,
        outputs: Slots,
        targets: TubeTargets,
        weights: TubeletLoss,
        *,
        auxiliary_output: Tensor | None = None,
        auxiliary_weight: float = 0.0,
        processes: Processes = ALONE,
    ) -> dict[str, Tensor]:
        return tubelet_losses(
            outputs,
            targets,
            weights,
            multi_label=self.config.multi_label,
            pixels=auxiliary_output,
            auxiliary_weight=auxiliary_weight,
            processes=processes,
        )

    def detections(self, final: FinalSlots, weights: TubeletLoss, *, threshold: float = THRESHOLD) -> Detections:
        return detections(final, weights, multi_label=self.config.multi_label, threshold=threshold)

    def assess(self, final: FinalSlots, targets: TubeTargets, weights: TubeletLoss) -> Assessment:
        return assess(final, targets, weights, multi_label=self.config.multi_label, threshold=THRESHOLD)


def _first_boxes(slots: int) -> Tensor:
    """(S, 4) logits of boxes in rows over the whole picture, so that the slots look at different places at first."""
    columns = math.ceil(math.sqrt(slots))
    rows = math.ceil(slots / columns)
    place = torch.arange(slots)
    row = place // columns
    # The last row may have fewer slots, which share its width.
    in_row = (slots - row * columns).clamp(max=columns)
    x = (place % columns + 0.5) / in_row
    y = (row + 0.5) / rows
    sides = torch.tensor(_FIRST_SIDES).expand(slots, 2)
    return torch.cat([x[:, None], y[:, None], sides], -1).logit()


def _head(outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))
