"""Published stems made to take the pixels that all networks here take, so that one clip can go into any of them."""

from __future__ import annotations

import torch
from actdet_kernels.reference import IMAGENET_MEAN, IMAGENET_STD
from torch import Tensor


@torch.no_grad()
def take_our_pixels(
    weight: Tensor, running_mean: Tensor, mean: tuple[float, ...], std: tuple[float, ...], *, is_bgr: bool = False
) -> None:
    """Change a stem, in place, so that it takes RGB of ImageNet's mean and deviation (`actdet.data.augment.normalize`).

    Of a pixel p in [0, 1] the stem has learned to see (p - mean) / std. In the pixel x that it is given here this is

        (ImageNet's deviation * x + ImageNet's mean - mean) / std,

    which is linear in x. The factor goes into the weight, and the constant into the running mean of the BatchNorm.
    Only at the border the function is another one: the zeros there are ImageNet's mean color now, and not `mean`.

    Args:
        weight: (O, 3, ...), the weight of the stem's convolution, which has no bias.
        running_mean: (O,), that of the BatchNorm after it.
        mean: What was subtracted from red, green and blue in [0, 1].
        std: What they were divided by after that.
        is_bgr: Whether the stem has learned to see blue first.
    """
    published = weight.double()
    if is_bgr:
        published = published.flip(1)

    def colors(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=weight.device)

    scale = colors(IMAGENET_STD) / colors(std)
    constant = (colors(IMAGENET_MEAN) - colors(mean)) / colors(std)
    weight.copy_(published * scale.view(1, 3, *[1] * (weight.ndim - 2)))
    running_mean.sub_(published.flatten(2).sum(2) @ constant)
