"""The settings of a run. Each class is what the command line shows, what a checkpoint records, and what code reads.

A text under a field is its help. Defaults are the technical report's where it prints a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from actdet.data.classes import CLASS_NAMES, NO_ACTION
from actdet.errors import ActdetError

if TYPE_CHECKING:
    from actdet_kernels import MatchWeights

THRESHOLD = 0.5  # so many actions of a class must be expected in a clip that it counts as found


# The values that each number may have, by the name of its option; "(" and ")" leave the end itself out. Upper ends are
# far above what is of use, and low enough that nothing overflows and no list of that length fills the memory.
BOUNDS = {
    "image_size": "[32, 4096]",
    "frames": "[8, 1024]",
    "queries": "[1, 1000]",
    "encoder_layers": "[0, 100]",
    "decoder_layers": "[1, 100]",
    "dropout": "[0, 1)",
    "cls_weight": "[0, 1000000]",
    "l1_weight": "[0, 1000000]",
    "giou_weight": "[0, 1000000]",
    "no_object_weight": "[0.000001, 1000000]",
    "flip": "[0, 1]",
    "crop": "[0, 1)",
    "colour": "[0, 1)",
    "mixup": "[0, 1000]",
    "epochs": "[1, 1000000]",
    "batch_size": "[1, 65536]",
    "lr": "(0, 1e38]",
    "min_lr": "[0, 1e38]",
    "weight_decay": "[0, 1000]",
    "clip_norm": "(0, 1000000]",
    "auxiliary_weight": "[0, 1000000]",
    "small_epochs": "[0, 999999]",
    "shallow_epochs": "[0, 999999]",
    "ema_decay": "[0, 1)",
    "seed": "[0, 4294967295]",
    "eval_every": "[1, 1000000]",
    "workers": "[0, 1024]",
    "disk_cache": "[0, 1000000]",
    "val_share": "[0, 1)",
    "folds": "[2, 1000]",
    "threshold": "[0, 1]",
    "clips": "[1, 100000]",
}


def check_bounds(values: Mapping[str, object], bounds: Mapping[str, str] = BOUNDS) -> None:
    """Raises ActdetError for the first number among `values` that is not within `bounds`, which are as in BOUNDS."""
    for name, value in values.items():
        if name not in bounds or not isinstance(value, int | float):
            continue
        interval = bounds[name]
        least, most = map(float, interval[1:-1].split(","))
        above = value > least if interval[0] == "(" else value >= least
        below = value < most if interval[-1] == ")" else value <= most
        _check(above and below, f"{name} must be in {interval}, got {value}")


def _check(holds: bool, problem: str) -> None:
    if not holds:
        raise ActdetError(problem)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the detector."""

    class_names: tuple[str, ...] = CLASS_NAMES
    """Names of the action classes, in the order of their ids in the annotation files. A data set that has a
    classes.txt, a name a line, says them itself."""
    image_size: int = 224
    """Side of the square picture that the network sees, in pixels; a multiple of 16."""
    frames: int = 16
    """Frames sampled from a clip; a multiple of 8."""
    queries: int = 12
    """How many predictions a clip gets: more than the most actions in any clip."""
    encoder_layers: int = 2
    """Transformer encoder layers; 0 is the report's text, 2 its parameter count."""
    decoder_layers: int = 4
    """Transformer decoder layers."""
    dropout: float = 0.1
    """Dropout in the Transformer (the report's section 6.4 advises 0.2 for little data)."""
    deep_supervision: bool = False
    """Train every decoder layer with the loss, as DETR does, instead of the last alone."""

    def __post_init__(self) -> None:
        check_bounds(vars(self))
        _check(self.image_size % 16 == 0, f"image_size must be a multiple of 16, got {self.image_size}")
        _check(self.frames % 8 == 0, f"frames must be a multiple of 8, got {self.frames}")
        _check(
            len(self.class_names) >= 1 and len(set(self.class_names)) == len(self.class_names),
            f"class_names must be one or more different names, got {self.class_names}",
        )
        _check(
            NO_ACTION not in self.class_names, f"class_names must not hold {NO_ACTION!r}: that is a clip without one"
        )


@dataclass(frozen=True)
class LossConfig:
    """Weights of the matching cost (eq. 10) and of the loss (eq. 12)."""

    cls_weight: float = 2.0
    """Weight of the classification term."""
    l1_weight: float = 5.0
    """Weight of the L1 distance of the boxes."""
    giou_weight: float = 2.0
    """Weight of the generalized-IoU loss of the boxes."""
    no_object_weight: float = 0.1
    """Weight of a query without a target in the cross-entropy."""

    def __post_init__(self) -> None:
        check_bounds(vars(self))

    @property
    def match_weights(self) -> MatchWeights:
        """The three weights that cost and loss share."""
        # The kernels bring in PyTorch, and the command line reads this module before it knows what is to be done.
        from actdet_kernels import MatchWeights

        return MatchWeights(self.cls_weight, self.l1_weight, self.giou_weight)


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training clips; boxes move with the pixels."""

    flip: float = 0.5
    """Probability of a horizontal flip."""
    crop: float = 0.2
    """A crop takes away up to this share of the width and of the height; 0 turns it off."""
    jitter: bool = True
    """Take each frame at a random time within its segment of the clip, instead of at its middle."""
    colour: float = 0.3
    """Strength of the change of brightness, contrast and saturation, one draw a clip; 0 turns it off."""
    mixup: float = 0.0
    """Parameter of the Beta distribution that blends pairs of clips and keeps both's targets; 0 turns it off."""

    def __post_init__(self) -> None:
        check_bounds(vars(self))


NO_AUGMENTATION = AugmentConfig(flip=0.0, crop=0.0, jitter=False, colour=0.0)


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
        _check(
            0 <= self.warmup < self.epochs,
            f"warmup must be shorter than the {self.epochs} epochs, got {self.warmup}",
        )
        for name in ("small_epochs", "shallow_epochs"):
            count = getattr(self, name)
            _check(count < self.epochs, f"{name} must be fewer than the {self.epochs} epochs, got {count}")
        _check(
            not self.shallow_epochs or (self.backbone_weights == "none" and self.init is None),
            "shallow_epochs is for a backbone that starts from scratch: give backbone_weights none, and no init",
        )
        _check(
            not (self.shallow_epochs and self.freeze_backbone),
            "shallow_epochs is for a backbone that is trained: leave out freeze_backbone",
        )
