"""The network that is trained: DeepLabV3 of torchvision behind the interface of the example trainers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3_resnet50

from brpg_lib import ProjectionHead
from brpg_lib.examples.training.networks.base import Segmenter
from brpg_lib.examples.training.networks.compact import CompactNet

CHANNELS = 256
"""Channels of the decoder, from which the projection starts."""


class DeepLab(Segmenter):
    """ResNet-50 with DeepLabV3, random weights, and an optional representation branch; features at 1/8 of the image."""

    def __init__(self, num_classes: int, feature_dim: int | None) -> None:
        super().__init__()
        network = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=num_classes)
        self.backbone = network.backbone
        *decoder, self.classifier = network.classifier
        self.decoder = nn.Sequential(*decoder)
        self.projection = None if feature_dim is None else ProjectionHead(CHANNELS, feature_dim)

    def encode(self, images: Tensor) -> list[Tensor]:
        """One map of the backbone."""
        return [self.backbone(images)["out"]]

    def decode(self, maps: list[Tensor]) -> Tensor:
        """Atrous pyramid and fusion."""
        decoded: Tensor = self.decoder(maps[0])
        return decoded


def network(num_classes: int, feature_dim: int | None, tiny: bool) -> Segmenter:
    """The network, or a tiny one in its place; the same weights with and without the branch, which is built last."""
    torch.manual_seed(0)
    return CompactNet(num_classes, feature_dim, width=8) if tiny else DeepLab(num_classes, feature_dim)
