"""A trained network as one function of frames, which `actdet export` writes into a file."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from actdet_kernels.reference import IMAGENET_MEAN, IMAGENET_STD
from torch import Tensor, nn

from actdet.data.augment import normalize


class Exportable(nn.Module):
    """Clips (B, T, S, S, 3) uint8 RGB to tensors by name: here the network's final outputs; a family may add to them.

    It must consist of operators that every runtime has, with any number of clips at a time. What has a size that
    depends on values, such as a set of actions, cannot be among the outputs.

    Args:
        network: A network of a family. It is copied, to the CPU.
    """

    threshold: float | None = None
    """The lowest score at which an action counts, if the outputs depend on it."""
    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = deepcopy(network).cpu().float().requires_grad_(False)
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN))
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD))
        self.eval()

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        return self.network(self.normalized(clips)).final()._asdict()

    def expected(self, network: Any, clips: Tensor, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what an exported file should have computed, within rounding.

        Args:
            network: The network as it was trained.
            clips: (B, T, S, S, 3) uint8 RGB.
            found: What the file did compute. A rule that may jump where its inputs differ by rounding is to be applied
                to the file's own.

        Returns:
            Tensors by the names of the outputs, in the order in which they are compared.
        """
        return network(normalize(clips)).final()._asdict()

    def normalized(self, clips: Tensor) -> Tensor:
        """(B, T, S, S, 3) uint8 to (B, 3, T, S, S), as `actdet.data.augment.normalize` does, in ordinary operators."""
        return ((clips.float() - self.mean) / self.std).permute(0, 4, 1, 2, 3)
