"""Whether all ranks have the same values: compared as text before a training, as sums of numbers in each step."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from brpg_lib.ranks.collectives import ProcessGroup, gather_rows, rank
from brpg_lib.validation import require

_BITS, _PIECES = 6, 7
"""How integers travel in a sum of float32: in pieces so small that their squares add up exactly on 4000 ranks."""


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
        Whether the ranks agree ``(n,)`` bool, and the mean of their values ``(n,)`` float32.
    """
    pieces, squares = total.view(2, -1, _PIECES).long().unbind()
    shifts = torch.arange(0, _BITS * _PIECES, _BITS, device=total.device)
    mean = (pieces << shifts).sum(-1) / ranks
    # Equality in the inequality of Cauchy and Schwarz: only for equal numbers.
    return (ranks * squares == pieces.square()).all(-1), mean.float()
