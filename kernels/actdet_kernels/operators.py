"""How an operation becomes an operator of PyTorch's dispatcher, which tracing does not look into.

torch.compile, torch.export and fake tensors see an operator and the shapes of its results, and never how it is
computed: neither the launch of a kernel nor the reference's way through SciPy. The arguments of an operator are
tensors and numbers, so targets are passed as their fields.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from actdet_kernels.targets import Targets, Tubelets

# Parts of the operators' schemas: the fields of targets, of which `visible` is None for boxes, and the three weights.
TARGETS = "Tensor labels, Tensor target_boxes, Tensor counts, Tensor? visible"
WEIGHTS = "float[] weights"

# PyTorch's own questions whether anything stands between a call and its computation.
MODES = torch._C._len_torch_dispatch_stack
TRANSFORMATIONS = torch._C._functorch.peek_interpreter_stack  # pyright: ignore[reportAttributeAccessIssue]
PROFILED = torch.autograd._profiler_enabled  # pyright: ignore[reportPrivateImportUsage]

# Tensors of these types need no dispatcher. A subclass might have its own way of computing.
PLAIN = (Tensor, Parameter)

LIBRARY = torch.library.Library("actdet_kernels", "DEF")


def operator(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make an operator out of a function. The caller registers its shapes by `torch.library.register_fake`.

    The result calls the function directly if nothing could tell the difference, because the dispatcher takes as long
    as a small problem.

    Args:
        schema: The operator's name, arguments and results, as `torch.library.Library.define` takes them.

    Returns:
        A decorator.
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
    """Return whether no tracer, mode, transformation, derivative or profiler could want to see the operator."""
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
    """Return a batch of targets as the operators take it: labels, boxes, counts, and visible or None."""
    visible = targets.visible if isinstance(targets, Tubelets) else None
    return targets.labels, targets.boxes, targets.counts, visible


def targets_of(labels: Tensor, boxes: Tensor, counts: Tensor, visible: Tensor | None) -> Targets | Tubelets:
    """Return the targets of which `flat` made these tensors."""
    return Targets(labels, boxes, counts) if visible is None else Tubelets(labels, boxes, counts, visible)
