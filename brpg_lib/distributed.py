"""The few collectives that keep prototypes equal on all ranks; no-ops in a single process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

ProcessGroup = dist.ProcessGroup | None


def world_size(group: ProcessGroup = None) -> int:
    """Number of ranks in ``group``; 1 where ``torch.distributed`` is not initialized."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def rank(group: ProcessGroup = None) -> int:
    """Rank in ``group``; 0 where ``torch.distributed`` is not initialized."""
    return dist.get_rank(group) if dist.is_available() and dist.is_initialized() else 0


def all_reduce_sum(tensor: Tensor, group: ProcessGroup = None) -> Tensor:
    """``tensor`` summed over all ranks, in place."""
    if world_size(group) > 1:
        dist.all_reduce(tensor, group=group)
    return tensor


def gather_rows(tensor: Tensor, group: ProcessGroup = None) -> Tensor:
    """Rows of all ranks, in rank order, where each rank may have another number of them.

    Args:
        tensor: ``(n, ...)``; only ``n`` differs between ranks.
        group: Process group, ``None`` for the default.

    Returns:
        ``(sum of n, ...)``, equal on all ranks.
    """
    ranks = world_size(group)
    if ranks == 1:
        return tensor
    length = torch.tensor([tensor.shape[0]], device=tensor.device)
    lengths = [torch.empty_like(length) for _ in range(ranks)]
    dist.all_gather(lengths, length, group=group)
    counts = [int(count) for count in lengths]
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: tensor.shape[0]] = tensor
    parts = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
