"""What the prototypes think of the teacher's pseudo labels: a second opinion, which BRPG itself does not use."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from brpg_lib import Phase, PrototypeBank, PrototypeHead
from brpg_lib.examples.training.networks.base import Prediction

KINDS = ("product", "agreement")
LOWEST = -1.0
"""Cosine to a class without prototypes."""


def with_second_opinion(probability: Tensor, weak: Prediction, head: PrototypeHead, kind: str) -> Tensor:
    """The teacher's probabilities after the prototypes were asked; before there are prototypes, as they are.

    Args:
        probability: ``(B, C, H, W)`` of the teacher.
        weak: The teacher's prediction, with features of all images.
        head: Whose prototypes, and temperature.
        kind: ``"product"``: times the softmax over the prototypes' similarities, renormalized, as ProDA does (Zhang
            et al., CVPR 2021). ``"agreement"``: nothing is certain where the nearest prototype is of another class:
            all classes are equally probable there.

    Returns:
        ``(B, C, H, W)``.
    """
    if head.phase is not Phase.LEARN or weak.features is None:
        return probability
    maps = similarity_maps(head.bank, weak.features, probability.shape[-2:], head.config.align_corners)
    if kind == "agreement":
        agreed = maps.argmax(1, keepdim=True) == probability.argmax(1, keepdim=True)
        return probability.where(agreed, 1 / probability.shape[1])
    joint = probability * (maps / head.config.temperature).softmax(1)
    return joint / joint.sum(1, keepdim=True)


def similarity_maps(bank: PrototypeBank, features: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Cosine to each class's nearest prototype, enlarged: ``(B, C, H, W)`` float32 from features ``(B, D, h, w)``."""
    maps = bank.similarity(features).nan_to_num(neginf=LOWEST)
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=align_corners)
