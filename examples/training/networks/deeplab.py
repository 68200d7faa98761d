"""DeepLabV3+ (Chen et al., 2018) on a ResNet of torchvision or any network of timm, as published with BRPG."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.deeplabv3 import ASPP

from brpg_lib import ProjectionHead
from brpg_lib.examples.training.networks.base import Segmenter, enlarge
from brpg_lib.examples.training.networks.normalize import MEAN, STD, ImageNetNormalize

INNER = 256
ATROUS_RATES = [12, 24, 36]
MULTI_GRID = (2, 2, 4)


class DeepLabV3Plus(Segmenter):
    """Atrous pyramid over the encoder's last map, joined with its map at 1/4 of the image.

    Args:
        encoder: From normalized images to a map at 1/4 and the last one.
        num_classes: C.
        feature_dim: D of the representation branch; None builds none.
    """

    def __init__(self, encoder: ResNetEncoder | TimmEncoder, num_classes: int, feature_dim: int | None) -> None:
        super().__init__()
        fine, coarse = encoder.channels
        self.normalize = ImageNetNormalize(*encoder.statistics)
        self.encoder = encoder
        self.low = nn.Sequential(nn.Conv2d(fine, INNER, 1), nn.BatchNorm2d(INNER), nn.ReLU(inplace=True))
        self.pyramid = ASPP(coarse, ATROUS_RATES, INNER)
        self.classifier = ProjectionHead(2 * INNER, INNER)
        self.classifier[-1] = nn.Conv2d(INNER, num_classes, 1)
        self.projection = None if feature_dim is None else ProjectionHead(2 * INNER, feature_dim)

    def encode(self, images: Tensor) -> list[Tensor]:
        """The map at 1/4 and the last one."""
        maps: list[Tensor] = self.encoder(self.normalize(images))
        return maps

    def decode(self, maps: list[Tensor]) -> Tensor:
        """``(B, 512, h, w)`` at 1/4 of the image."""
        fine, coarse = maps
        low = self.low(fine)
        return torch.cat((low, enlarge(self.pyramid(coarse), low)), dim=1)


class ResNetEncoder(nn.Module):
    """A bottleneck ResNet at output stride 8 with a multi-grid last stage.

    Args:
        name: ``"resnet50"``, ``"resnet101"`` or ``"resnet152"``.
        pretrained: Whether to start from torchvision's newest ImageNet weights.
    """

    channels = (256, 2048)
    statistics = (MEAN, STD)

    def __init__(self, name: str, pretrained: bool) -> None:
        super().__init__()
        network = get_model(
            name, weights="DEFAULT" if pretrained else None, replace_stride_with_dilation=[False, True, True]
        )
        for block, grid in zip(network.layer4, MULTI_GRID, strict=True):
            block.conv2.dilation = block.conv2.padding = (block.conv2.dilation[0] * grid,) * 2
        self.body = IntermediateLayerGetter(network, {"layer1": "fine", "layer4": "coarse"})

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps at 1/4 and 1/8."""
        return list(self.body(images).values())


class TimmEncoder(nn.Module):
    """A network of timm at output stride 16.

    Args:
        name: What timm calls it, such as ``"xception65"``.
        pretrained: Whether to start from timm's ImageNet weights.

    Raises:
        ModuleNotFoundError: timm is not installed.
    """

    def __init__(self, name: str, pretrained: bool) -> None:
        super().__init__()
        import timm  # only here: the other networks do without it

        self.body = timm.create_model(name, pretrained=pretrained, features_only=True, output_stride=16)
        reductions = self.body.feature_info.reduction()
        self.chosen = (reductions.index(4), len(reductions) - 1)
        fine, coarse = (self.body.feature_info.channels()[index] for index in self.chosen)
        self.channels = (fine, coarse)
        trained = timm.get_pretrained_cfg(name)
        self.statistics = tuple([255 * value for value in values] for values in (trained.mean, trained.std))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps at 1/4 and 1/16."""
        maps = self.body(images)
        return [maps[index] for index in self.chosen]
