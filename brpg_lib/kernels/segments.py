"""Rows of many groups in one tensor: sums over each group, always in the same order, and places within it."""

from __future__ import annotations

import torch
from torch import Tensor

from brpg_lib.kernels.device import on_host


def sums_by_index(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Add up rows by an index.

    Args:
        values: ``(N, F)`` float32, differentiable.
        index: ``(N,)`` int64 in [0, count).
        count: Number of sums.

    Returns:
        ``(count, F)`` float32.
    """
    if on_host(values.device):
        return values.new_zeros(count, values.shape[1]).index_add(0, index, values)
    # Elsewhere index_add adds in any order, and many rows of one group wait for each other.
    member = torch.arange(count, device=index.device)[:, None] == index
    return member.to(values.dtype) @ values


def counts_by_index(index: Tensor, count: int) -> Tensor:
    """How often each number occurs.

    Args:
        index: ``(N,)`` int64 in [0, count].
        count: How many numbers are counted; ``count`` itself is not.

    Returns:
        ``(count,)`` int64.
    """
    if on_host(index.device):
        return torch.bincount(index, minlength=count + 1)[:count]
    # Elsewhere a count per number would be one place that all rows wait for.
    return _bounds(index.sort().values, count).diff()


def positions_in_group(sorted_index: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Members of each group ``(num_groups,)``, and each element's position in its group, for sorted group indices."""
    bounds = _bounds(sorted_index, num_groups)
    position = torch.arange(len(sorted_index), device=sorted_index.device) - bounds[sorted_index]
    return bounds.diff(), position


def _bounds(sorted_index: Tensor, count: int) -> Tensor:
    """Where each of the numbers 0..count begins: ``(count + 1,)`` int64."""
    return torch.searchsorted(sorted_index, torch.arange(count + 1, device=sorted_index.device))
