"""Which pseudo labels teach: of each class the most reliable ones."""

from __future__ import annotations

import torch
from torch import Tensor

from brpg_lib.distributed import all_reduce_sum
from brpg_lib.examples.training.data.augment import IGNORE_INDEX
from brpg_lib.learn.limits import ClassLimits


@torch.no_grad()
def most_reliable(limits: ClassLimits, classes: Tensor, reliability: Tensor) -> Tensor:
    """Pseudo labels that teach keep their class, the others are ignored.

    Args:
        limits: Of each class, the same in all processes; the batch moves them first.
        classes: ``(B, H, W)`` int64; 255 is ignored.
        reliability: ``(B, H, W)`` between 0 and 1.

    Returns:
        ``(B, H, W)`` int64.
    """
    limits.follow(all_reduce_sum(limits.counts(classes, reliability)))
    limit = limits()[classes.masked_fill(classes == IGNORE_INDEX, 0)]
    return classes.masked_fill(reliability < limit, IGNORE_INDEX)
