"""What a device can do."""

from __future__ import annotations

from functools import cache

import torch


def on_host(device: torch.device) -> bool:
    """Whether the host reads values there without waiting, and adds them up one after the other."""
    return device.type == "cpu"


@cache
def widest(device: torch.device) -> torch.dtype:
    """Type of sums over very many rows: float64, or float32 on a device that has none (MPS, some others)."""
    try:
        torch.ones((), dtype=torch.float64, device=device).add(1)
    except (TypeError, RuntimeError):
        return torch.float32
    return torch.float64
