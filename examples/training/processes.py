"""The processes of a training: one, or as many as torchrun has started."""

from __future__ import annotations

import os
import socket
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


def usable_device(name: str | None = None) -> torch.device:
    """The device that this process trains on.

    Args:
        name: Of a torch device; None for the GPU of this process if there is one, else the CPU.

    Raises:
        ValueError: It cannot be used.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: {name} cannot be used ({str(error).splitlines()[0]})") from error
    return device


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Joins the processes that torchrun has started, if it has."""
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield Processes(rank, ranks, device)
    if ranks > 1:  # not after an error: the others do not come here, and this one would wait for them
        dist.destroy_process_group()


@contextmanager
def first_alone(processes: Processes) -> Iterator[None]:
    """The first process passes before the others, so that what it downloads is there for them."""
    if processes.ranks > 1 and processes.rank > 0:
        dist.barrier()
    yield
    if processes.ranks > 1 and processes.rank == 0:
        dist.barrier()


def share_statistics(model: nn.Module) -> nn.Module:
    """Batch norm over the images of all processes; on GPUs only."""
    synchronized: nn.Module
    if any(isinstance(m, _BatchNorm) and type(m).__module__.startswith("timm.") for m in model.modules()):
        from timm.layers import convert_sync_batchnorm  # keeps the activations that timm's norms contain

        synchronized = convert_sync_batchnorm(model)
    else:
        synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(model)
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
