"""What the trainers ask of a network: logits, the representation of some images, and perturbed logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prediction(NamedTuple):
    """What a network returns.

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


class Segmenter(nn.Module, ABC):
    """An encoder and a decoder, a classifier, and an optional representation branch beside it.

    Subclasses set ``classifier`` and, last, so that the initial weights of everything else do not depend on it,
    ``projection`` (or None).
    """

    classifier: nn.Module
    projection: nn.Module | None

    @abstractmethod
    def encode(self, images: Tensor) -> list[Tensor]:
        """The maps that the decoder takes, of images ``(B, 3, H, W)``."""

    @abstractmethod
    def decode(self, maps: list[Tensor]) -> Tensor:
        """The map ``(B, channels, h, w)`` that classifier and projection take."""

    def new_modules(self) -> list[nn.Module]:
        """All but the encoder: what starts from random weights even where that is pretrained."""
        return [module for name, module in self.named_children() if name != "encoder"]

    def forward(self, images: Tensor, features: int = 0, perturb: torch.Generator | None = None) -> Prediction:
        """Segments a batch.

        Args:
            images: ``(B, 3, H, W)``.
            features: For how many images, from the first on, to compute the representation.
            perturb: Generator of a channel dropout between encoder and decoder, for a second set of logits.
        """
        maps = self.encode(images)
        if perturb is not None:  # both pass the decoder together and share its batch statistics, as published
            maps = [torch.cat([m, drop_channels(m, perturb)]) for m in maps]
        decoded = self.decode(maps)
        count = len(images)
        low_logits = self.classifier(decoded)
        logits = enlarge(low_logits, images)
        represented = self.projection(decoded[:features]) if features and self.projection is not None else None
        perturbed = None if perturb is None else logits[count:]
        return Prediction(logits[:count], low_logits[:count], represented, perturbed)


def enlarge(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear interpolation to the height and width of another tensor."""
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)


def drop_channels(x: Tensor, generator: torch.Generator) -> Tensor:
    """Dropout2d with p = 0.5 from a generator of its own, so that nothing else changes its draws."""
    keep = torch.rand(x.shape[:2], generator=generator, device=generator.device).to(x.device) >= 0.5
    return x * (2.0 * keep)[..., None, None]
