"""The settings of a training, which the command line shows and a checkpoint records.

The text under a field is its help. Defaults are those of the technical report if it prints a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from actdet.bounds import check, check_bounds
from actdet.data.config import AugmentConfig
from actdet.models.config import LossSettings
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
    """Gradients with a larger norm are scaled down to this one."""
    backbone_weights: str = "kinetics"
    """The weights that the backbone starts from: kinetics (of R(2+1)D-18), imagenet (of EfficientNet-Lite0), none, or a
    file of such weights, such as another run's model."""
    init: str | None = None
    """A trained detector, another run's model.safetensors, to train further. Its shape is kept, and backbone_weights is
    ignored."""
    auxiliary_weight: float = 0.0
    """Weight of an auxiliary loss, by which the backbone alone has to predict the actions: for detr from its averaged
    features, for tubelet from each pixel of them. It helps a backbone that starts from scratch: use 2 (tubelet: 1) if
    there are no Kinetics weights."""
    small_epochs: int = 0
    """How many of the first epochs show pictures of half as many pixels, 0.7 of image_size each way. Such an epoch
    takes half the time."""
    shallow_epochs: int = 0
    """How many of the first epochs train only the first of the two blocks in each stage of the backbone. The second
    block starts as the identity and joins after them. Such an epoch takes half the time. For backbones from scratch."""
    freeze_backbone: bool = False
    """Train only the Transformer and the heads (the report's section 6.4)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network; auto takes bf16 if the device has it, else fp16 on a GPU, else fp32."""
    step: Literal["auto", "graph", "eager", "compile"] = "auto"
    """How a step is launched: as one CUDA graph, operator by operator, or through torch.compile; auto takes graph on a
    single GPU, else eager."""
    checkpointing: bool = False
    """Compute the backbone's features again in the backward pass instead of keeping them: a third more work, for cards
    with little memory."""
    ema_decay: float = 0.0
    """Evaluate and keep a running average of the weights, over about 1 / (1 - ema_decay) steps; 0 turns it off."""
    seed: int = 0
    """Seed of everything random."""
    eval_every: int = 5
    """Epochs from one evaluation on the held-out clips to the next; the last one is at the end."""
    window: float = 0.0
    """Cut videos that have a table of tubes (annotations/NAME.csv) into windows of about so many seconds, and train on
    these; 0 leaves them whole. For long videos, in which an action takes a small part of the time."""
    reader: Literal["auto", "pyav", "dali"] = "auto"
    """What decodes the videos; auto takes DALI on a GPU, else PyAV."""
    workers: int = 1
    """Processes that decode while the network trains; with 0, decoding and training take turns in one process."""
    cache: Literal["auto", "memory", "none"] = "auto"
    """Whether decoded clips are kept in the device's memory, so that each is decoded once; auto keeps them if they
    fit."""
    disk_cache: float = 0.0
    """Keep decoded clips on the disk, too, for later runs: at most this many GiB, in $ACTDET_CACHE or
    ~/.cache/actdet."""
    bad_files: Literal["stop", "skip"] = "stop"
    """What to do about a bad file (a video that is empty, cut off or cannot be decoded, or a wrong annotation): stop
    the run, or skip its clip and list it at the end."""
    loss: LossSettings = LossConfig()
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
            "shallow_epochs is for a backbone that starts from scratch: set backbone_weights to none, and no init",
        )
        check(
            not (self.shallow_epochs and self.freeze_backbone),
            "shallow_epochs is for a backbone that is trained: leave out freeze_backbone",
        )
