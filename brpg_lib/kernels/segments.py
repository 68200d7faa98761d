"""Sums over the rows of each of many groups, always in the same order."""

from __future__ import annotations

import torch
from torch import Tensor


def sums_by_index(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Add up rows by an index.

    Args:
        values: ``(N, F)`` float32, differentiable.
        index: ``(N,)`` int64 in [0, count).
        count: Number of sums.

    Returns:
        ``(count, F)`` float32.
    """
    if values.device.type == "cpu":
        return values.new_zeros(count, values.shape[1]).index_add(0, index, values)
    # Elsewhere index_add adds in any order, and many rows of one group wait for each other.
    member = torch.arange(count, device=index.device)[:, None] == index
    return member.to(values.dtype) @ values
