"""Rows of many groups in one tensor: sums over each group, always in the same order, and places within it."""

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


def positions_in_group(sorted_index: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Members of each group ``(num_groups,)``, and each element's position in its group, for sorted group indices."""
    counts = torch.bincount(sorted_index, minlength=num_groups)
    start = counts.cumsum(0) - counts
    return counts, torch.arange(len(sorted_index), device=sorted_index.device) - start[sorted_index]
