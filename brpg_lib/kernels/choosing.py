"""Choosing rows: some of them at random, their places, and writing them elsewhere.

How many rows are chosen depends on values. On the CPU a list of them is as long as it needs to be. Elsewhere asking for
its length would make the host wait, so a list has a fixed length there, and flags tell which of its entries count.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from brpg_lib.kernels import fused
from brpg_lib.kernels.device import on_host
from brpg_lib.kernels.random import fold, uniform


def can_exceed(candidates: Tensor, count: int) -> bool:
    """Whether there are more than ``count`` candidates ``(N,)`` bool, as far as the host can tell."""
    return len(candidates) > count and not (on_host(candidates.device) and int(candidates.sum()) <= count)


def numbers(candidates: Tensor, key: tuple[Tensor, int, int, int]) -> Tensor:
    """Uniform numbers ``(N,)``; the n-th candidate has the n-th one, however many others there are."""
    return uniform((len(candidates),), fold(*key))[(candidates.cumsum(0) - 1).clamp(min=0)]


def draw(candidates: Tensor, count: int, key: tuple[Tensor, int, int, int], cost: Tensor | None = None) -> Tensor:
    """At most ``count`` of the candidates, without replacement.

    Args:
        candidates: ``(N,)`` bool.
        count: How many are left at most.
        key: ``()`` int64 and integers that seed the draw.
        cost: ``(N,)`` above 0; a candidate is drawn in proportion to one over it. None for all alike.

    Returns:
        ``(N,)`` bool.
    """
    # Exponential race (Efraimidis and Spirakis, 2006): the largest of log(u) / weight are a draw without replacement in
    # proportion to the weights.
    kernels = fused.kernels_for(candidates.device)
    if kernels is not None:
        scores = kernels.race(candidates, candidates.cumsum(0), key, cost)
    else:
        scores = numbers(candidates, key).log()
        scores = torch.where(candidates, scores if cost is None else scores * cost, -torch.inf)
    winners = scores.topk(min(count, len(scores)), sorted=False).indices
    return torch.zeros_like(candidates).index_fill(0, winners, True) & candidates


def places_of(chosen: Tensor, at_most: int) -> tuple[Tensor, Tensor]:
    """Where a mask is true, in order.

    Args:
        chosen: ``(N,)`` bool.
        at_most: No more than this many are true.

    Returns:
        ``(n,)`` int64 indices, and ``(n,)`` bool, which of them count. All of them on the CPU; elsewhere n is the
        smaller one of ``at_most`` and N.
    """
    if on_host(chosen.device):
        place = chosen.nonzero()[:, 0]
        return place, torch.ones_like(place, dtype=torch.bool)
    length = min(at_most, len(chosen))
    # The n-th true entry is the first one up to which n + 1 are true.
    wanted = torch.arange(1, length + 1, device=chosen.device)
    place = torch.searchsorted(chosen.cumsum(0), wanted)
    return place.clamp(max=len(chosen) - 1), place < len(chosen)


def put_rows(targets: Sequence[tuple[Tensor, Tensor]], place: Tensor, source: Tensor, valid: Tensor) -> None:
    """Write rows ``values[source[n]]`` to ``target[place[n]]`` for every valid n, in place.

    Args:
        targets: Pairs of a target ``(P, ...)``, which is changed, and its values ``(M, ...)`` of any type.
        place: ``(N,)`` int64 in [0, P); those that are valid differ.
        source: ``(N,)`` int64 in [0, M).
        valid: ``(N,)`` bool.
    """
    if not len(place):
        return
    if on_host(valid.device):
        if not bool(valid.all()):
            place, source = place[valid], source[valid]
        for target, values in targets:
            target[place] = values[source].to(target.dtype)
        return
    # What is not valid repeats what some valid row writes; where none is, all repeat what is there already.
    some, index = valid.long().max(dim=0)
    one = torch.where(valid, torch.arange(len(valid), device=valid.device), index)
    place, source, some = place[one], source[one], some > 0
    for target, values in targets:
        target[place] = torch.where(some, values[source].to(target.dtype), target[place[:1]])
