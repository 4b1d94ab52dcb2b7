"""The factorized convolutions of R(2+1)D, (1, k, k) and (k, 1, 1), and their BatchNorm, computed in two dimensions.

Both convolutions are 2-D convolutions over views of channels-last video, without a copy: the first over B*T pictures of
H x W, the second over B pictures of T x (H*W). In float32 on a CPU the gradients of their weights are matrix products:

    dW[o, c, i, j] = sum over n, y, x of dY[n, o, y, x] * X[n, c, y + i - padding, x + j - padding]

For the shapes of this network, oneDNN's own kernel (3.9, AVX2) takes 1.4 to 20 times as long (docs/LOG.md).

On a GPU, BatchNorm also sees the video as B*T pictures, because PyTorch has channels-last kernels for pictures only. In
bf16 its kernel for video copied the features to float32 and reduced them by a general algorithm; together with the ReLU
that took half of a training step (bench/LOG.md). In a CUDA graph, BatchNorm, the sum that ends a residual block and the
ReLU are one operation, which takes the GPU half of the time. Outside of a graph they are not, because launching its
kernels one by one takes the host twice as long as launching PyTorch's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from actdet_kernels import batch_norm
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

# A matrix of columns above this size leaves the caches, and oneDNN's own kernel is as fast.
_MOST_COLUMN_BYTES = 32 * 2**20


class FactorizedConv(nn.Conv3d):
    """A (1, k, k) or (k, 1, 1) convolution of R(2+1)D without a bias: clips (B, C, T, H, W) to (B, O, T', H', W').

    While `flat`, it is computed as a 2-D convolution, otherwise as nn.Conv3d computes it.
    """

    flat = True

    def forward(self, input: Tensor) -> Tensor:
        if not self.flat:
            return super().forward(input)

        batch, channels, frames, height, width = input.shape
        padding = tuple(int(side) for side in self.padding)
        if self.kernel_size[0] == 1:
            pictures = input.transpose(1, 2).reshape(batch * frames, channels, height, width)
            output = _convolve(pictures, self.weight.squeeze(2), self.stride[1:], padding[1:])
            return output.unflatten(0, (batch, frames)).transpose(1, 2)

        pictures = input.flatten(3)
        output = _convolve(pictures, self.weight.squeeze(-1), (self.stride[0], 1), (padding[0], 0))
        return output.unflatten(3, (height, width))


class PictureNorm(nn.BatchNorm3d):
    """nn.BatchNorm3d, which on a GPU sees channels-last video (B, C, T, H, W) as a view of B*T pictures.

    While `fused`, training computes it, with the sum and the ReLU after it, as one operation.
    """

    fused = False

    def forward(self, input: Tensor, relu: bool = False, shortcut: Tensor | None = None) -> Tensor:
        """Normalize `input`, (B, C, T, H, W), add `shortcut` to the result, and apply the ReLU to the sum if `relu`."""
        if not _are_pictures_faster(input):
            return self._one_by_one(input, relu, shortcut)

        frames = input.shape[2]
        pictures = _pictures(input)
        if shortcut is not None:
            shortcut = _pictures(shortcut)
        normalize = self._together if self._can_be_together() else self._one_by_one
        output = normalize(pictures, relu, shortcut)
        return output.unflatten(0, (-1, frames)).transpose(1, 2)

    def _can_be_together(self) -> bool:
        return self.fused and self.training and self.momentum is not None

    def _together(self, pictures: Tensor, relu: bool, shortcut: Tensor | None) -> Tensor:
        """Normalize (N, C, H, W), with sum and ReLU, by the one operation of `actdet_kernels`."""
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        return batch_norm(
            pictures,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            shortcut=shortcut,
            relu=relu,
            momentum=self.momentum,
            eps=self.eps,
        )

    def _one_by_one(self, features: Tensor, relu: bool, shortcut: Tensor | None) -> Tensor:
        """Normalize (N, C, ...) by PyTorch's operator, and then add and apply the ReLU by others."""
        output = super().forward(features)
        # In place, but never to a view: for the gradient of that, PyTorch copies all features several times.
        if shortcut is not None:
            output += shortcut
        return F.relu_(output) if relu else output

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept video and pictures: both have their channels in the second dimension."""


class RectifiedSequential(nn.Sequential):
    """nn.Sequential that computes a `PictureNorm` and the nn.ReLU after it as one operation."""

    def forward(self, input: Tensor) -> Tensor:
        parts = list(self)
        while parts:
            part = parts.pop(0)
            if isinstance(part, PictureNorm) and parts and isinstance(parts[0], nn.ReLU):
                parts.pop(0)
                input = part(input, relu=True)
            else:
                input = part(input)
        return input


def set_flat(module: nn.Module, flat: bool) -> None:
    """Let the factorized convolutions in `module` be computed in two dimensions if `flat`, otherwise in three."""
    for part in module.modules():
        if isinstance(part, FactorizedConv):
            part.flat = flat


def fuse_norms(module: nn.Module) -> None:
    """Let each BatchNorm in `module` be computed together with what follows it when it is trained on a GPU."""
    for part in module.modules():
        if isinstance(part, PictureNorm):
            part.fused = True


def _pictures(video: Tensor) -> Tensor:
    """Return video (B, C, T, H, W) as pictures (B*T, C, H, W): a view, if it is channels-last."""
    return video.transpose(1, 2).flatten(0, 1)


def _are_pictures_faster(video: Tensor) -> bool:
    return video.is_cuda and video.is_contiguous(memory_format=torch.channels_last_3d)


def _convolve(pictures: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
    """F.conv2d, whose weight gradient is computed by matrix products if that is known to be faster.

    Args:
        pictures: (N, C, H, W) floating point.
        weight: (O, C, k, k) or (O, C, k, 1).
        stride: Vertical and horizontal.
        padding: Vertical and horizontal.

    Returns:
        (N, O, H', W').
    """
    is_plain = (
        pictures.device.type != "cpu"
        or pictures.dtype != torch.float32
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or not (torch.is_grad_enabled() and weight.requires_grad)
        # `actdet.training.cost` counts with fake CPU tensors the work and the memory of a GPU, which has no products.
        or isinstance(pictures, FakeTensor)
        or not _is_product_faster(pictures, weight, stride, padding)
    )
    if is_plain:
        return F.conv2d(pictures, weight, None, stride, padding)
    return _ConvByProducts.apply(pictures, weight, padding)


def _is_product_faster(pictures: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> bool:
    """Whether the products below can compute this convolution's gradient, and are faster than oneDNN."""
    channels, *kernel = weight.shape[1:]
    keeps_size = stride == (1, 1) and [2 * side + 1 for side in padding] == kernel
    column_bytes = pictures[:, 0].numel() * kernel[0] * kernel[1] * channels * pictures.element_size()
    return keeps_size and (kernel[1] == 1 or column_bytes <= _MOST_COLUMN_BYTES)


class _ConvByProducts(torch.autograd.Function):
    """A convolution of stride 1 of pictures (N, C, H, W), which keeps their size; its weight is (O, C, k, k or 1)."""

    @staticmethod
    def forward(ctx: Any, pictures: Tensor, weight: Tensor, padding: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(pictures, weight)
        ctx.padding = padding
        return F.conv2d(pictures, weight, None, 1, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        pictures, weight = ctx.saved_tensors
        pictures_gradient = None
        if ctx.needs_input_grad[0]:
            pictures_gradient, *_ = torch.ops.aten.convolution_backward(
                gradient, pictures, weight, None, (1, 1), ctx.padding, (1, 1), False, (0, 0), 1, (True, False, False)
            )

        compute = _columns_gradient if weight.shape[3] > 1 else _rows_gradient
        weight_gradient = compute(pictures.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1), weight.shape[2])
        return pictures_gradient, weight_gradient, None


def _columns_gradient(pictures: Tensor, gradient: Tensor, kernel: int) -> Tensor:
    """The gradient of a weight (O, C, k, k), as one product with the columns of the pictures.

    Args:
        pictures: (N, H, W, C).
        gradient: (N, H, W, O), that of the output.
        kernel: k.
    """
    channels = pictures.shape[3]
    outputs = gradient.shape[3]
    side = kernel // 2
    padded = F.pad(pictures, (0, 0, side, side, side, side))

    # The windows are (N, H, W, C, k, k), the columns (N * H * W, k * k * C).
    windows = padded.unfold(1, kernel, 1).unfold(2, kernel, 1)
    columns = windows.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2)
    product = gradient.flatten(0, 2).t() @ columns
    return product.view(outputs, kernel, kernel, channels).permute(0, 3, 1, 2)


def _rows_gradient(pictures: Tensor, gradient: Tensor, kernel: int) -> Tensor:
    """The gradient of a weight (O, C, k, 1): for each of its rows, one product of views for each picture.

    Args:
        pictures: (N, T, S, C).
        gradient: (N, T, S, O), that of the output.
        kernel: k.
    """
    frames = pictures.shape[1]
    channels = pictures.shape[3]
    outputs = gradient.shape[3]

    rows = []
    for row in range(kernel):
        # This row of the weight multiplies frame t + shift of the pictures into frame t of the output.
        shift = row - kernel // 2
        first = max(0, -shift)
        last = min(frames, frames - shift)
        if first >= last:
            rows.append(pictures.new_zeros(outputs, channels))
            continue

        inputs = pictures[:, first + shift : last + shift].flatten(1, 2)
        output_gradient = gradient[:, first:last].flatten(1, 2)
        rows.append((output_gradient.transpose(1, 2) @ inputs).sum(0))
    return torch.stack(rows, dim=1).permute(0, 2, 1)[..., None]
