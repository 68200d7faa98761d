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


def used_share(cosine: Tensor, classes: Tensor, mask: Tensor) -> Tensor:
    """Share of the prototypes, of classes with points, that are some point's most similar one in its class.

    Args:
        cosine: ``(N, C, 2, K)`` from :meth:`PrototypeBank.cosine`.
        classes: ``(N,)`` int64; points outside 0..C-1 do not count.
        mask: ``(C, 2, K)`` bool.

    Returns:
        ``()`` float32 in [0, 1]; prototypes that stay unused for long are dead.
    """
    slots = mask[0].numel()
    counted = (classes >= 0) & (classes < len(mask))
    target = torch.where(counted, classes, 0)
    slot = cosine.detach().flatten(2).take_along_dim(target[:, None, None], dim=1)[:, 0].argmax(dim=1)
    hits = torch.zeros(mask.numel(), device=mask.device).index_add_(0, target * slots + slot, counted.float())
    hit = (hits > 0).view(len(mask), slots) & mask.flatten(1)
    expected = hit.any(1)[:, None] & mask.flatten(1)
    return hit.sum() / expected.sum().clamp(min=1)
