"""A compact encoder-decoder for the demo, trained from scratch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from brpg_lib import ProjectionHead
from brpg_lib.examples.training.networks.base import Segmenter, enlarge


def conv(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
    )


class Residual(nn.Module):
    """Two convolutions around which the input flows on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(width, width), nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, width, h, w)`` -> the same shape."""
        return F.relu(x + self.body(x))


class CompactNet(Segmenter):
    """A small U-shaped segmentation network with an optional representation branch.

    The branch is built last, so that the initial weights of everything else do not depend on it.

    Args:
        num_classes: C.
        feature_dim: D of the representation branch; None builds none.
        width: Channels at the finest level.
        stride: 2 or 4, image pixels per feature pixel.
    """

    def __init__(self, num_classes: int, feature_dim: int | None = None, width: int = 32, stride: int = 2) -> None:
        super().__init__()
        stem = [conv(3, width, 2), conv(width, width, stride // 2)]
        self.encoder = nn.ModuleList(
            [
                nn.Sequential(*stem),
                nn.Sequential(conv(width, 2 * width, 2), Residual(2 * width)),
                nn.Sequential(conv(2 * width, 4 * width, 2), Residual(4 * width)),
            ]
        )
        self.lateral = nn.ModuleList([nn.Conv2d(n * width, 2 * width, 1) for n in (1, 2, 4)])
        self.merge = nn.ModuleList([conv(2 * width, 2 * width) for _ in range(2)])
        self.classifier = nn.Conv2d(2 * width, num_classes, 1)
        self.projection = None if feature_dim is None else ProjectionHead(2 * width, feature_dim)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Maps at three scales, the finest first."""
        maps = []
        x = images
        for stage in self.encoder:
            x = stage(x)
            maps.append(x)
        return maps

    def decode(self, maps: list[Tensor]) -> Tensor:
        """From the coarsest to the finest, each added to what comes from below."""
        fine, middle, x = (lateral(m) for lateral, m in zip(self.lateral, maps, strict=True))
        for merge, skip in zip(self.merge, (middle, fine), strict=True):
            x = merge(enlarge(x, skip) + skip)
        decoded: Tensor = x
        return decoded
