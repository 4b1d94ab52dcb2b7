"""ResNet-18 (He et al. 2016) as a feature extractor for pictures, and the places that its weights come from.

The network is torchvision's without pooling and classifier, so its published ImageNet weights fit. They have learned
from pixels of ImageNet's mean and deviation, which are those that all networks here take.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, resnet18

from actdet.errors import ActdetError
from actdet.models.backbones.weights import fetch_state, fill_weights, find_tensors, read_state

# The channels of each stage's output, whose pixels are 4, 8, 16 and 32 of the picture's.
STAGE_FEATURES = (64, 128, 256, 512)

# What error messages call the network.
_NETWORK = "ResNet-18"


class ResNet18(nn.Module):
    """Pictures (N, 3, H, W) to the features of the four stages, (N, C, H', W') each, from fine to coarse."""

    widths = STAGE_FEATURES

    def __init__(self) -> None:
        super().__init__()
        # The parts have torchvision's names.
        network = resnet18(weights=None)
        self.conv1 = network.conv1
        self.bn1 = network.bn1
        self.relu = network.relu
        self.maxpool = network.maxpool
        self.layer1 = network.layer1
        self.layer2 = network.layer2
        self.layer3 = network.layer3
        self.layer4 = network.layer4

    def forward(self, pictures: Tensor) -> list[Tensor]:
        features = self.maxpool(self.relu(self.bn1(self.conv1(pictures))))
        stages = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
            stages.append(features)
        return stages

    def load_weights(self, source: str) -> None:
        """Take weights; the network is left as it was if they cannot be used.

        Args:
            source: "imagenet" for torchvision's ImageNet weights, which are downloaded once, "none" to leave the
                weights as they are, or a file. A file is an actdet checkpoint, whose backbone is taken, or a state dict
                of torchvision's resnet18.

        Raises:
            ActdetError: If the ImageNet weights cannot be downloaded.
            DataError: If the file cannot be read, holds other weights, or holds numbers that are not finite.
        """
        if source == "none":
            return
        if source == "kinetics":
            raise ActdetError(
                f"{_NETWORK} has no weights of Kinetics: use --backbone-weights imagenet, a file, or none"
            )

        if source == "imagenet":
            state = fetch_state(ResNet18_Weights.IMAGENET1K_V1, "ImageNet")
        else:
            state = read_state(Path(source), _NETWORK, "imagenet")
        names = {key: key for key in self.state_dict()}
        fill_weights(self, find_tensors(state, names, self), names, source, _NETWORK)
