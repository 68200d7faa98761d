"""The few collectives that keep prototypes equal on all ranks; no-ops in a single process."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from brpg_lib.state import StateModule
from brpg_lib.validation import require

ProcessGroup = dist.ProcessGroup | None

_BITS, _PIECES = 6, 7
"""How integers travel in a sum of float32: in pieces so small that their squares add up exactly on 4000 ranks."""


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


def require_same_everywhere(values: dict[str, object], device: torch.device, group: ProcessGroup = None) -> None:
    """Require that all ranks have the same values.

    Args:
        values: What must agree, by name; anything that JSON can hold.
        device: Where the ranks' tensors lie.
        group: Process group, ``None`` for the default.

    Raises:
        ValueError: On all ranks, naming what differs, where.
    """
    text = torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8, device=device)
    own = json.loads(json.dumps(values))
    differing = []
    for index, part in enumerate(gather_rows(text, group)):
        other = json.loads(bytes(part.cpu().tolist()))
        differing += [
            f"{name} is {other.get(name)!r} on rank {index}, {own.get(name)!r} here (rank {rank(group)})"
            for name in own | other
            if other.get(name) != own.get(name)
        ]
    require(not differing, "process_group", "ranks that agree", "; ".join(differing[:10]))


def in_pieces(values: Tensor) -> Tensor:
    """Integers ``(n,)`` int64 below 2**42 as float32 ``(2 * n * 7,)`` whose sum over ranks shows whether all agree."""
    shifts = torch.arange(0, _BITS * _PIECES, _BITS, device=values.device)
    pieces = ((values[:, None] >> shifts) & (2**_BITS - 1)).float()
    return torch.cat((pieces, pieces.square())).flatten()


def from_pieces(total: Tensor, ranks: int) -> tuple[Tensor, Tensor]:
    """What the sum of :func:`in_pieces` over ranks tells.

    Returns:
        Whether the ranks agree ``(n,)`` bool, and the mean of their values ``(n,)`` float64.
    """
    pieces, squares = total.view(2, -1, _PIECES).long().unbind()
    shifts = torch.arange(0, _BITS * _PIECES, _BITS, device=total.device)
    mean = (pieces << shifts).sum(-1) / ranks
    # Equality in the inequality of Cauchy and Schwarz: only for equal numbers.
    return (ranks * squares == pieces.square()).all(-1), mean.double()


def keep_out_of_ddp(model: nn.Module) -> None:
    """Tell ``DistributedDataParallel`` to leave the buffers of heads inside ``model`` alone.

    A head keeps itself equal on all ranks. DDP would broadcast its buffers, the queues among them, before each step.
    Needed only where a head is part of the model; call it before wrapping.

    Args:
        model: The model that will be wrapped.
    """
    names = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, StateModule)
        for name, _ in module.named_buffers()
    }
    ignored = names | set(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sorted(ignored))


def _device(device: torch.device, group: ProcessGroup) -> torch.device:
    """Where a tensor must lie to be sent: NCCL sends from GPUs only."""
    backend = dist.get_backend(group)  # such as "nccl", or "cpu:gloo,cuda:nccl"
    if device.type == "cpu" and "nccl" in backend and "cpu:" not in backend:
        return torch.device("cuda", torch.cuda.current_device())
    return device
