"""The values that each number option of the command line may have, and the check of them, before any work."""

from __future__ import annotations

from collections.abc import Mapping

from actdet.errors import ActdetError

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
        check(above and below, f"{name} must be in {interval}, got {value}")


def check(holds: bool, problem: str) -> None:
    """Raises ActdetError with `problem` unless something holds."""
    if not holds:
        raise ActdetError(problem)
