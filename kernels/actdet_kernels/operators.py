"""How an operation becomes an operator of PyTorch's dispatcher: one boundary, behind which it is computed.

Tracing (torch.compile, export, fake tensors) sees an operator and its shapes, and never what is inside: neither a
kernel's launch nor the reference's way through SciPy. Targets are flat arguments there; `visible` is None for boxes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from actdet_kernels.targets import Targets, Tubelets

TARGETS = "Tensor labels, Tensor target_boxes, Tensor counts, Tensor? visible"
WEIGHTS = "float[] weights"
LIBRARY = torch.library.Library("actdet_kernels", "DEF")


def operator(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make an operator of a function. Its shapes are registered beside it, by `torch.library.register_fake`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = schema.split("(")[0]
        LIBRARY.define(schema)
        LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        return getattr(torch.ops.actdet_kernels, name).default

    return register


def flat(targets: Targets | Tubelets) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """A batch of targets as the operators take it."""
    visible = targets.visible if isinstance(targets, Tubelets) else None
    return targets.labels, targets.boxes, targets.counts, visible


def targets_of(labels: Tensor, boxes: Tensor, counts: Tensor, visible: Tensor | None) -> Targets | Tubelets:
    """The way back from `flat`."""
    return Targets(labels, boxes, counts) if visible is None else Tubelets(labels, boxes, counts, visible)
