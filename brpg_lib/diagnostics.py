"""What the prototypes look like, as numbers for a log. Nothing here waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def within_class_similarity(prototypes: Tensor, mask: Tensor) -> Tensor:
    """Mean cosine similarity of pairs of prototypes of one class; near 1 they have collapsed onto each other.

    Args:
        prototypes: ``(C, 2, K, D)`` float32.
        mask: ``(C, 2, K)`` bool.

    Returns:
        ``()`` float32; 0 where no class has two prototypes.
    """
    directions = nn.functional.normalize(prototypes.flatten(1, 2), dim=-1)
    exists = mask.flatten(1)
    pairs = (exists[:, :, None] & exists[:, None]).triu(diagonal=1)
    return (directions @ directions.mT * pairs).sum() / pairs.sum().clamp(min=1)


def accuracy(similarity: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Share of points whose most similar class is their own; points outside 0..C-1 do not count.

    Args:
        similarity: ``(N, C)``.
        classes: ``(N,)`` int64.
        num_classes: Number of classes C.

    Returns:
        ``()`` float32; 0 without points.
    """
    counted = (classes >= 0) & (classes < num_classes)
    right = counted & (similarity.detach().argmax(dim=1) == classes)
    return right.sum() / counted.sum().clamp(min=1)


def used_share(nearest: Tensor, counted: Tensor, mask: Tensor) -> Tensor:
    """Share of the prototypes, of classes with points, that are some point's most similar one in its class.

    Args:
        nearest: ``(N,)`` int64 index of each point's prototype, from :meth:`PrototypeBank.assign`.
        counted: ``(N,)`` bool, points that have one.
        mask: ``(C, 2, K)`` bool.

    Returns:
        ``()`` float32 in [0, 1]; prototypes that stay unused for long are dead.
    """
    hits = torch.zeros(mask.numel(), device=mask.device).index_add_(0, nearest, counted.float())
    hit = (hits > 0).view(len(mask), -1) & mask.flatten(1)
    expected = hit.any(1)[:, None] & mask.flatten(1)
    return hit.sum() / expected.sum().clamp(min=1)
