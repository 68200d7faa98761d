"""A compact encoder-decoder for the demo, trained from scratch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brpg_lib import ProjectionHead


class Prediction(NamedTuple):
    """What the network returns.

    Attributes:
        logits: ``(B, C, H, W)`` at image resolution.
        low_logits: ``(B, C, h, w)`` at feature resolution.
        features: ``(n, D, h, w)`` of the first ``n`` images, or None if none were asked for.
        perturbed_logits: ``(B, C, H, W)`` of the perturbed features, or None if not asked for.
    """

    logits: Tensor
    low_logits: Tensor
    features: Tensor | None
    perturbed_logits: Tensor | None


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


class CompactNet(nn.Module):
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

    def forward(self, images: Tensor, features: int = 0, perturb: torch.Generator | None = None) -> Prediction:
        """Segments a batch.

        Args:
            images: ``(B, 3, H, W)``.
            features: For how many images, from the first on, to compute the representation.
            perturb: Generator of a channel dropout between encoder and decoder, for a second set of logits.
        """
        maps = []
        x = images
        for stage in self.encoder:
            x = stage(x)
            maps.append(x)
        decoded = self._decode(maps)
        low_logits = self.classifier(decoded)
        represented = None
        if features and self.projection is not None:
            represented = self.projection(decoded[:features])
        perturbed = None
        if perturb is not None:
            dropped = [drop_channels(m, perturb) for m in maps]
            perturbed = enlarge(self.classifier(self._decode(dropped)), images)
        return Prediction(enlarge(low_logits, images), low_logits, represented, perturbed)

    def _decode(self, maps: list[Tensor]) -> Tensor:
        fine, middle, x = (lateral(m) for lateral, m in zip(self.lateral, maps, strict=True))
        for merge, skip in zip(self.merge, (middle, fine), strict=True):
            x = merge(enlarge(x, skip) + skip)
        return x


def enlarge(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear interpolation to the height and width of another tensor."""
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)


def drop_channels(x: Tensor, generator: torch.Generator) -> Tensor:
    """Dropout2d with p = 0.5 from a generator of its own, so that nothing else changes its draws."""
    keep = torch.rand(x.shape[:2], generator=generator, device=generator.device).to(x.device) >= 0.5
    return x * (2.0 * keep)[..., None, None]
