"""How an operation becomes an operator of PyTorch's dispatcher: one boundary, behind which it is computed.

Tracing (torch.compile, export, fake tensors) sees an operator and its shapes, and never what is inside: neither a
kernel's launch nor the reference's way through SciPy. Targets are flat arguments there; `visible` is None for boxes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from actdet_kernels.targets import Targets, Tubelets

TARGETS = "Tensor labels, Tensor target_boxes, Tensor counts, Tensor? visible"
WEIGHTS = "float[] weights"

# What PyTorch itself asks whether anything is between a call and its computation.
MODES = torch._C._len_torch_dispatch_stack
TRANSFORMATIONS = torch._C._functorch.peek_interpreter_stack  # pyright: ignore[reportAttributeAccessIssue]
PROFILED = torch.autograd._profiler_enabled  # pyright: ignore[reportPrivateImportUsage]

PLAIN = (Tensor, Parameter)
LIBRARY = torch.library.Library("actdet_kernels", "DEF")


def operator(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make an operator of a function. Its shapes are registered beside it, by `torch.library.register_fake`.

    What comes back calls the function itself where nobody could tell: the dispatcher takes as long as a small problem.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = schema.split("(")[0]
        LIBRARY.define(schema)
        LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        dispatched = getattr(torch.ops.actdet_kernels, name).default

        @wraps(function)
        def call(*arguments: Any) -> Any:
            return function(*arguments) if _nobody_looks(arguments) else dispatched(*arguments)

        return call

    return register


def _nobody_looks(arguments: tuple[Any, ...]) -> bool:
    """Whether no tracer, mode, transformation, derivative or profiler could want to see the operator."""
    if torch.compiler.is_compiling() or MODES() > 0 or TRANSFORMATIONS() is not None:
        return False
    if PROFILED():
        return False
    differentiable = torch.is_grad_enabled()
    for value in arguments:
        if isinstance(value, Tensor) and (type(value) not in PLAIN or (differentiable and value.requires_grad)):
            return False
    return True


def flat(targets: Targets | Tubelets) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """A batch of targets as the operators take it."""
    visible = targets.visible if isinstance(targets, Tubelets) else None
    return targets.labels, targets.boxes, targets.counts, visible


def targets_of(labels: Tensor, boxes: Tensor, counts: Tensor, visible: Tensor | None) -> Targets | Tubelets:
    """The way back from `flat`."""
    return Targets(labels, boxes, counts) if visible is None else Tubelets(labels, boxes, counts, visible)
