"""Reading many rows: a block at a time, or at indices."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}
"""Size of a block in float32: what stays in a CPU's cache, or is enough to fill a GPU."""


def blocks(rows: Tensor, chosen: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Blocks ``(G, b, D)`` of ``rows (G, n, D)`` in float32, each with the slice of n that it is.

    With ``chosen (g,)``, blocks ``(g, b, D)`` of these groups only.
    """
    groups, length, dim = rows.shape
    if chosen is not None:
        groups = len(chosen)
    size = max(16, BLOCK_BYTES.get(rows.device.type, BLOCK_BYTES["cpu"]) // (4 * groups * dim))
    for start in range(0, length, size):
        place = slice(start, start + size)
        block = rows[:, place] if chosen is None else rows[chosen, place]
        yield place, block.to(torch.float32)


def take(rows: Tensor, index: Tensor) -> Tensor:
    """A copy ``(G, m, ...)`` of the rows at ``index (G, m)`` of ``rows (G, n, ...)``."""
    return rows[torch.arange(len(rows), device=rows.device)[:, None], index]
