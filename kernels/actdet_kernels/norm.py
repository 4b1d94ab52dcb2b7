"""Batch normalization of channels-last features, in training, with the sum and the ReLU that end a residual block.

y = weight (x - mean) / sqrt(var + eps) + bias,  mean and variance of each channel over the batch (Ioffe and Szegedy
2015); y + shortcut, if one is given; and max(y, 0) with `relu`

From top to bottom: the public function, its checks, the way through the kernels with its autograd function, and the
operators of the result and the gradient with their shapes. The reference is PyTorch's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from actdet_kernels import reference
from actdet_kernels.backend import Backend, implementation, kernel_module
from actdet_kernels.operators import LIBRARY, operator


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    shortcut: Tensor | None = None,
    relu: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    backend: Backend = "auto",
) -> Tensor:
    """Compute `F.relu(F.batch_norm(..., training=True) + shortcut)`, each as asked for, with less memory traffic.

    The kernels take features whose channels lie side by side in memory (`torch.channels_last` or `channels_last_3d`).
    For others "auto" takes the reference, which is PyTorch's, and also on a CPU, where that is as fast. The kernels add
    up in a fixed order, so two runs give the same bits. They have no second derivative.

    Args:
        x: (B, C, ...) float16, bfloat16, float32 or float64, with more than one value per channel.
        weight: (C,) floating point.
        bias: (C,) floating point.
        running_mean: (C,) floating point, which is moved in place by `momentum` toward the batch's mean, or None.
        running_var: (C,) floating point, likewise for the batch's unbiased variance. None if running_mean is None.
        shortcut: (B, C, ...) of x's dtype, added to what is normalized, or None: the end of a residual block.
        relu: Whether to apply the ReLU, last of all.
        momentum: The share of the batch in the running statistics, in [0, 1].
        eps: Added to the variance.
        backend: See `explain_backend`.

    Returns:
        (B, C, ...) of x's dtype. Statistics and arithmetic are float32, or float64 if x is.

    Raises:
        ValueError: Shapes, dtypes or devices disagree, or x has only one value per channel.
        RuntimeError: The backend that was asked for by name cannot run.
    """
    _check_features(x, {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var})
    _check_shortcut(shortcut, x)
    compute = implementation(
        backend,
        x.device,
        kernels=_by_kernels,
        reference=reference.batch_norm,
        obstacle=None if _is_channels_last(x) else "its channels do not lie side by side in memory",
        cpu_obstacle="PyTorch's own batch norm is as fast on a CPU",
    )
    return compute(x, weight, bias, running_mean, running_var, shortcut, relu, momentum, eps)


def _check_features(x: Tensor, of_channels: dict[str, Tensor | None]) -> None:
    if x.ndim < 2 or x.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"x must be (B, C, ...) floating point, got {tuple(x.shape)} {x.dtype}")
    channels = x.shape[1]
    if channels == 0 or x.numel() < 2 * channels:
        raise ValueError(f"x must have more than one value per channel, got {tuple(x.shape)}")

    if (of_channels["running_mean"] is None) != (of_channels["running_var"] is None):
        raise ValueError("running_mean and running_var belong together: give both or neither")
    for name, values in of_channels.items():
        if values is None:
            continue
        if values.shape != (channels,) or not values.is_floating_point():
            raise ValueError(f"{name} must be ({channels},) floating point, got {tuple(values.shape)} {values.dtype}")
        if values.device != x.device:
            raise ValueError(f"{name} is on {values.device}, x on {x.device}")


def _check_shortcut(shortcut: Tensor | None, x: Tensor) -> None:
    if shortcut is None:
        return
    if shortcut.shape != x.shape or shortcut.dtype != x.dtype:
        given = f"{tuple(shortcut.shape)} {shortcut.dtype}"
        raise ValueError(f"shortcut must be {tuple(x.shape)} {x.dtype}, as x is, got {given}")
    if shortcut.device != x.device:
        raise ValueError(f"shortcut is on {shortcut.device}, x on {x.device}")


def _is_channels_last(x: Tensor) -> bool:
    return x.movedim(1, -1).is_contiguous()


def _channels_last(x: Tensor, like: Tensor) -> Tensor:
    """Return `x` in the memory layout of `like`, which is channels-last."""
    return x if _is_channels_last(x) else torch.empty_like(like).copy_(x)


def _by_kernels(
    chosen: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    shortcut: Tensor | None,
    relu: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    y, statistics = DifferentiableBatchNorm.apply(x, weight, bias, shortcut, relu, eps, chosen)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(statistics[0].to(running_mean.dtype), momentum)
            running_var.lerp_(statistics[2].to(running_var.dtype), momentum)
    return y


class DifferentiableBatchNorm(torch.autograd.Function):
    """`batch_norm` by the kernels, with its gradient. It returns y, and the statistics, which have no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, *options: Any
    ) -> tuple[Tensor, Tensor]:
        relu, _, ctx.chosen = options
        y, statistics = _batch_norm(x, weight, bias, shortcut, *options)
        ctx.relu = relu
        # Without a ReLU no gradient depends on the shortcut.
        ctx.save_for_backward(x, weight, bias, shortcut if relu else None, statistics)
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, d_y: Tensor, _: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        *gradients, d_shortcut = _batch_norm_gradient(d_y, *ctx.saved_tensors, ctx.relu, ctx.chosen)
        if not ctx.needs_input_grad[3]:
            d_shortcut = None
        elif not ctx.relu:
            d_shortcut = d_y
        return *gradients, d_shortcut, None, None, None


@operator(
    "batch_norm(Tensor x, Tensor weight, Tensor bias, Tensor? shortcut, bool relu, float eps, str chosen)"
    " -> (Tensor, Tensor)",
)
def _batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, relu: bool, eps: float, chosen: str
) -> tuple[Tensor, Tensor]:
    """Return y, and (3, C) statistics: the mean, 1 / sqrt(var + eps), and the unbiased variance."""
    if shortcut is not None:
        shortcut = _channels_last(shortcut, x)
    compute = kernel_module(chosen, "norm").batch_norm
    return compute(x, weight.contiguous(), bias.contiguous(), shortcut, relu, eps)


@torch.library.register_fake("actdet_kernels::batch_norm", lib=LIBRARY)
def _shapes(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.empty_like(x), x.new_empty((3, x.shape[1]), dtype=dtype)


@operator(
    "batch_norm_gradient(Tensor d_y, Tensor x, Tensor weight, Tensor bias, Tensor? shortcut, Tensor statistics,"
    " bool relu, str chosen) -> (Tensor, Tensor, Tensor, Tensor)"
)
def _batch_norm_gradient(
    d_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shortcut: Tensor | None,
    statistics: Tensor,
    relu: bool,
    chosen: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight, bias and the shortcut; the last is empty if none was given."""
    if shortcut is not None:
        shortcut = _channels_last(shortcut, x)
    compute = kernel_module(chosen, "norm").batch_norm_gradient
    *gradients, d_shortcut = compute(
        _channels_last(d_y, x), x, weight.contiguous(), bias.contiguous(), shortcut, statistics, relu
    )
    return *gradients, x.new_empty(0) if d_shortcut is None else d_shortcut


@torch.library.register_fake("actdet_kernels::batch_norm_gradient", lib=LIBRARY)
def _gradient_shapes(
    d_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    d_shortcut = x.new_empty(0) if shortcut is None else torch.empty_like(x)
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias), d_shortcut


def _no_second_derivative(ctx: Any, *cotangents: Tensor | None) -> Any:
    raise RuntimeError("batch_norm has no second derivative with the kernels: use backend='reference'")


torch.library.register_autograd("actdet_kernels::batch_norm_gradient", _no_second_derivative, lib=LIBRARY)
