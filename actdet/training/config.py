"""The settings of a training: what the command line shows, and what a checkpoint records.

A text under a field is its help. Defaults are the technical report's where it prints a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from actdet.bounds import check, check_bounds
from actdet.data.config import AugmentConfig
from actdet.models.detr.config import LossConfig


@dataclass(frozen=True)
class TrainConfig:
    """How to train."""

    epochs: int = 50
    """Passes over the training clips."""
    batch_size: int = 8
    """Clips in a batch."""
    lr: float = 5e-5
    """Highest learning rate of AdamW (eq. 15)."""
    min_lr: float = 1e-6
    """Learning rate at the end of the cosine (eq. 15)."""
    warmup: float = 0.0
    """Epochs over which the learning rate rises from 0 to its highest value, before the cosine."""
    weight_decay: float = 1e-4
    """Weight decay of AdamW (the report's section 6.4 advises 1e-3 for little data)."""
    clip_norm: float = 0.5
    """Gradients are scaled down to this norm."""
    backbone_weights: str = "kinetics"
    """Where the backbone starts: kinetics, none, or a file of R(2+1)D-18 weights, such as another run's model."""
    init: str | None = None
    """A finished detector, another run's model.safetensors, to train on, whole; its shape holds, and nothing is read of
    backbone_weights."""
    auxiliary_weight: float = 0.0
    """Weight of an auxiliary loss that reads a clip's action off the backbone's averaged features, without the
    Transformer: it teaches a backbone that starts from scratch. 2 where there are no Kinetics weights."""
    small_epochs: int = 0
    """So many epochs, the first ones, show pictures of half as many pixels, 0.7 of image_size each way. Such an epoch
    takes half the time."""
    shallow_epochs: int = 0
    """So many epochs, the first ones, train a backbone whose stages have only the first of their two blocks; the second
    joins as the identity as which it begins. Such an epoch takes half the time. For backbones from scratch."""
    freeze_backbone: bool = False
    """Train only the Transformer and the heads (the report's section 6.4)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network; auto takes bf16 where the device has it, else fp16 on a GPU, else fp32."""
    step: Literal["auto", "graph", "eager", "compile"] = "auto"
    """How a step is launched: as one CUDA graph, operator by operator, or through torch.compile; auto takes graph on a
    single GPU, else eager."""
    checkpointing: bool = False
    """Compute the backbone's features again in the backward pass instead of keeping them: a third more work, for cards
    with little memory."""
    ema_decay: float = 0.0
    """Evaluate and keep a running average of the weights, over about 1 / (1 - ema_decay) steps; 0 turns it off."""
    seed: int = 0
    """Everything random follows from it."""
    eval_every: int = 5
    """Evaluate on the held-out clips every so many epochs, and at the end."""
    reader: Literal["auto", "pyav", "dali"] = "auto"
    """What decodes the videos; auto takes DALI on a GPU, else PyAV."""
    workers: int = 1
    """Processes that decode while the network trains; 0 decodes in between."""
    cache: Literal["auto", "memory", "none"] = "auto"
    """Whether decoded clips are kept in the device's memory, so that each is decoded once; auto where they fit."""
    disk_cache: float = 0.0
    """Keep decoded clips on the disk, too, for later runs: at most so many GiB, in $ACTDET_CACHE or ~/.cache/actdet."""
    bad_files: Literal["stop", "skip"] = "stop"
    """What a bad file (a video that is empty, cut off or cannot be decoded, a wrong annotation) does to the run: it
    stops it, or its clip is left out and listed at the end."""
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()

    def __post_init__(self) -> None:
        check_bounds(vars(self))
        check(
            0 <= self.warmup < self.epochs,
            f"warmup must be shorter than the {self.epochs} epochs, got {self.warmup}",
        )
        for name in ("small_epochs", "shallow_epochs"):
            count = getattr(self, name)
            check(count < self.epochs, f"{name} must be fewer than the {self.epochs} epochs, got {count}")
        check(
            not self.shallow_epochs or (self.backbone_weights == "none" and self.init is None),
            "shallow_epochs is for a backbone that starts from scratch: give backbone_weights none, and no init",
        )
        check(
            not (self.shallow_epochs and self.freeze_backbone),
            "shallow_epochs is for a backbone that is trained: leave out freeze_backbone",
        )
