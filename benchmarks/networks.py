"""The network that is trained: DeepLabV3 of torchvision behind the interface of the example trainers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3_resnet50

from brpg_lib import ProjectionHead
from brpg_lib.examples.models import CompactNet, Prediction, drop_channels, enlarge

CHANNELS = 256
"""Channels of the decoder, from which the projection starts."""


class DeepLab(nn.Module):
    """ResNet-50 with DeepLabV3, random weights, and an optional representation branch; features at 1/8 of the image."""

    def __init__(self, num_classes: int, feature_dim: int | None) -> None:
        super().__init__()
        network = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=num_classes)
        self.backbone = network.backbone
        *decoder, self.classifier = network.classifier
        self.decoder = nn.Sequential(*decoder)
        self.projection = None if feature_dim is None else ProjectionHead(CHANNELS, feature_dim)

    def forward(self, images: Tensor, features: int = 0, perturb: torch.Generator | None = None) -> Prediction:
        """As :meth:`brpg_lib.examples.models.CompactNet.forward`."""
        encoded = self.backbone(images)["out"]
        decoded = self.decoder(encoded)
        low_logits = self.classifier(decoded)
        represented = self.projection(decoded[:features]) if features and self.projection is not None else None
        perturbed = None
        if perturb is not None:
            perturbed = enlarge(self.classifier(self.decoder(drop_channels(encoded, perturb))), images)
        return Prediction(enlarge(low_logits, images), low_logits, represented, perturbed)


def network(num_classes: int, feature_dim: int | None, tiny: bool) -> nn.Module:
    """The network, or a tiny one in its place; the same weights with and without the branch, which is built last."""
    torch.manual_seed(0)
    return CompactNet(num_classes, feature_dim, width=8) if tiny else DeepLab(num_classes, feature_dim)
