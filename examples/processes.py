"""The processes of a training: one, or as many as torchrun has started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Processes:
    """Where this process stands.

    Attributes:
        rank: From 0.
        ranks: How many processes there are.
        device: Of this one.
    """

    rank: int
    ranks: int
    device: torch.device


@contextmanager
def joined(device: str | None = None) -> Iterator[Processes]:
    """Joins the processes that torchrun has started, if it has.

    Args:
        device: Torch device; None for the GPU of this process if there is one, else the CPU.

    Raises:
        ValueError: The device cannot be used.
    """
    rank, ranks, local = (int(os.environ.get(name, default)) for name, default in
                          (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))  # fmt: skip
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(f"cuda:{local}" if name == "cuda" else name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: {name} cannot be used ({str(error).splitlines()[0]})") from error
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if ranks > 1:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(rank, ranks, chosen)
    finally:
        if ranks > 1:
            dist.destroy_process_group()


def share_statistics(model: nn.Module) -> nn.Module:
    """Batch norm over the images of all processes, where it can (on GPUs)."""
    synchronized: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return synchronized


def average_statistics(model: nn.Module, ranks: int) -> None:
    """Running statistics that each process has gathered alone become their mean."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm)]
    kept = [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]
    if ranks == 1 or not kept:
        return
    total = torch.cat([statistic.flatten() for statistic in kept])
    dist.all_reduce(total)
    for statistic, mean in zip(kept, (total / ranks).split([s.numel() for s in kept]), strict=True):
        statistic.copy_(mean.view_as(statistic))
