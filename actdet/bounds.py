"""The range of values that each number option of the command line may have, checked before any work begins."""

from __future__ import annotations

from collections.abc import Mapping

from actdet.errors import SettingError

# The range of each number, by the name of its option. "(" and ")" exclude the end itself. The upper ends are far above
# any useful value, yet low enough that nothing overflows and no list of that length fills the memory.
BOUNDS = {
    "image_size": "[32, 4096]",
    "frames": "[8, 1024]",
    "queries": "[1, 1000]",
    "slots": "[1, 1000]",
    "denoising_groups": "[0, 100]",
    "temporal_strides": "[0, 3]",
    "snippet": "[1, 64]",
    "encoder_layers": "[0, 100]",
    "decoder_layers": "[1, 100]",
    "dropout": "[0, 1)",
    "cls_weight": "[0, 1000000]",
    "l1_weight": "[0, 1000000]",
    "giou_weight": "[0, 1000000]",
    "center_weight": "[0, 1000000]",
    "movement_weight": "[0, 1000000]",
    "size_weight": "[0, 1000000]",
    "no_object_weight": "[0.000001, 1000000]",
    "flip": "[0, 1]",
    "crop": "[0, 1)",
    "color": "[0, 1)",
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
    "window": "[0, 86400]",
    "val_share": "[0, 1)",
    "folds": "[2, 1000]",
    "table": "[1, 100]",
    "threshold": "[0, 1]",
    "clips": "[1, 100000]",
}


def check_bounds(values: Mapping[str, object], bounds: Mapping[str, str] = BOUNDS) -> None:
    """Check that every number among some settings is in its range.

    Args:
        values: Settings by name. One that is not a number, or whose name has no range, is not checked.
        bounds: Ranges by name, written as in `BOUNDS`.

    Raises:
        SettingError: For the first number that is out of its range.
    """
    for name, value in values.items():
        if name not in bounds or not isinstance(value, int | float):
            continue

        interval = bounds[name]
        least, most = map(float, interval[1:-1].split(","))
        above = value > least if interval[0] == "(" else value >= least
        below = value < most if interval[-1] == ")" else value <= most
        check(above and below, f"{name} must be in {interval}, got {value}")


def check(holds: bool, problem: str) -> None:
    """Raise SettingError with the text `problem` unless `holds`."""
    if not holds:
        raise SettingError(problem)
