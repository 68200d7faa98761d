"""The few collectives that keep prototypes equal on all ranks; no-ops in a single process."""

from __future__ import annotations

from collections.abc import Sequence

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
    """``tensor`` summed over all ranks, in place where its device can communicate."""
    if world_size(group) > 1:
        there = tensor.to(_device(tensor.device, group))
        dist.all_reduce(there, group=group)
        if there is not tensor:
            tensor.copy_(there)
    return tensor


def gather_rows(tensor: Tensor, group: ProcessGroup = None) -> list[Tensor]:
    """The rows of each rank, in rank order, where each rank may have another number of them.

    Args:
        tensor: ``(n, ...)``; only ``n`` differs between ranks.
        group: Process group, ``None`` for the default.

    Returns:
        ``(n_r, ...)`` of each rank r, equal on all ranks.
    """
    ranks = world_size(group)
    if ranks == 1:
        return [tensor]
    there = tensor.to(_device(tensor.device, group))
    length = torch.tensor([len(there)], device=there.device)
    lengths = [torch.empty_like(length) for _ in range(ranks)]
    dist.all_gather(lengths, length, group=group)
    counts = torch.cat(lengths).tolist()
    padded = there.new_zeros(max(counts), *there.shape[1:])
    padded[: len(there)] = there
    parts = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(parts, padded, group=group)
    return [part[:count].to(tensor.device) for part, count in zip(parts, counts, strict=True)]


def share_of(costs: Sequence[float], group: ProcessGroup = None) -> slice:
    """This rank's part of a list of tasks: consecutive ones, so that all ranks have about equal costs."""
    ranks, own = world_size(group), rank(group)
    total, before, bounds = sum(costs), 0.0, [0]
    for index, cost in enumerate(costs):
        # A task belongs to the rank within whose share its middle lies.
        while len(bounds) <= ranks - 1 and before + cost / 2 > total * len(bounds) / ranks:
            bounds.append(index)
        before += cost
    bounds += [len(costs)] * (ranks + 1 - len(bounds))
    return slice(bounds[own], bounds[own + 1])


def _device(device: torch.device, group: ProcessGroup) -> torch.device:
    """Where a tensor must lie to be sent: NCCL sends from GPUs only."""
    backend = dist.get_backend(group)  # such as "nccl", or "cpu:gloo,cuda:nccl"
    if device.type == "cpu" and "nccl" in backend and "cpu:" not in backend:
        return torch.device("cuda", torch.cuda.current_device())
    return device
