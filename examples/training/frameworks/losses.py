"""Supervised losses on logits at image resolution."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from brpg_lib.examples.training.data.augment import IGNORE_INDEX

Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits ``(B, C, H, W)`` and labels ``(B, H, W)`` to ``()``."""

HARD_BELOW = 0.7
HARD_SHARE = 0.1  # published as 100000 of about a million pixels


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy averaged over the pixels that are not ignored; 0 with gradient if there are none."""
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (labels != IGNORE_INDEX).sum().clamp(min=1)


def hard_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The same over the hard pixels only (online hard example mining), as U2PL and BRPG have it.

    Hard are the pixels whose class has a probability of at most 0.7, and the least probable tenth in any case.
    """
    known = labels != IGNORE_INDEX
    with torch.no_grad():
        target = labels.masked_fill(~known, 0)
        own = logits.float().log_softmax(1).gather(1, target[:, None])[:, 0].exp()
        own = own.masked_fill(~known, 1.0)
        limit = own.flatten().kthvalue(max(1, round(HARD_SHARE * own.numel()))).values.clamp(min=HARD_BELOW)
    return cross_entropy(logits, labels.masked_fill(own > limit, IGNORE_INDEX))


def half_hard_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of both: what the published experiments descend."""
    return (cross_entropy(logits, labels) + hard_cross_entropy(logits, labels)) / 2


def selected_cross_entropy(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Cross entropy with the pseudo labels that were selected, averaged over all pixels of the images.

    Args:
        logits: ``(B, C, H, W)``.
        targets: ``(B, H, W)`` int64; 255 where nothing was selected.
        valid: ``(B, H, W)`` bool: pixels of the images.
    """
    share = (targets != IGNORE_INDEX).sum() / valid.sum().clamp(min=1)
    return share * cross_entropy(logits, targets)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "half_hard": half_hard_cross_entropy}
