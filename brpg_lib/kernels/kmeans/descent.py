"""Lloyd iterations of several competing sets of centers, until going on would not pay."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from brpg_lib.kernels.blocks import take
from brpg_lib.kernels.lloyd import LloydFactory

MAX_RATE, DECAY = 0.9, 0.5
"""Largest rate at which gains are taken to shrink, and how fast the estimate may fall."""
LOOKED_AT = 1024
"""Rows of each group among which an empty cluster looks for a new place."""


class Rows(NamedTuple):
    """What a stage clusters: the arguments of a :data:`~brpg_lib.kernels.lloyd.LloydFactory`."""

    values: Tensor  # (G, n, D)
    num_rows: Tensor  # (G,)
    shift: Tensor  # (G, D)
    place: Tensor | None  # (G, m), its `index`


class Descent(NamedTuple):
    """Where Lloyd iterations ended, for R competing sets of centers per group, relative to the shift."""

    centers: Tensor  # (G, R, K, D)
    counts: Tensor  # (G, R, K)
    inertia: Tensor  # (G, R)
    rate: Tensor  # (G, R), how the gains shrank
    active: Tensor  # (G, R), sets that are still in the race
    iterations: int = 0

    @classmethod
    def start(cls, centers: Tensor, active: Tensor) -> Descent:
        """From ``centers``, of which nothing is known."""
        nothing = torch.zeros_like(centers[..., 0])
        return cls(centers, nothing, nothing[..., 0], torch.full_like(nothing[..., 0], MAX_RATE), active)


def descend(
    create: LloydFactory,
    rows: Rows,
    found: Descent,
    allowed: Tensor,
    max_iterations: int,
    tolerance: Tensor,
    race: bool = False,
) -> Descent:
    """Lloyd iterations of each active set until it has converged.

    An iteration lowers the inertia by a gain that shrinks at about the same rate each time, so that the gains to come
    are a geometric series. A set has converged when these amount to less than ``tolerance (G, 1)`` of its inertia. In a
    ``race``, a set also stops when they would not bring it up to the best one of its group.
    """
    lloyd = create(*rows)
    centers, counts, inertia, rate, running, _ = found
    active, gain = running, torch.full_like(rate, torch.inf)
    inertia = torch.where(running, inertia, torch.inf)
    for iteration in range(1, max_iterations + 1):
        passed = lloyd(centers, allowed, active)
        nonempty = passed.counts > 0
        means = passed.sums / passed.counts.clamp(min=1)[..., None]
        saved = (passed.counts * (means - centers).square().sum(-1)).sum(-1)
        if iteration > 1:
            shrunk = (saved / gain.clamp(min=1e-30)).clamp(max=MAX_RATE)
            rate = torch.where(active, torch.maximum(shrunk, DECAY * rate), rate)
        gain = torch.where(active, saved, gain)
        counts = torch.where(active[..., None], passed.counts, counts)
        inertia = torch.where(active, passed.inertia, inertia)
        centers = torch.where((active[..., None] & nonempty)[..., None], means, centers)
        to_come = saved * rate / (1 - rate)
        moving = active & (to_come > tolerance * passed.inertia)
        if race:
            moving &= inertia - saved - to_come <= inertia.amin(1, keepdim=True)
        empty = active[..., None] & allowed[:, None] & ~nonempty
        if bool(empty.any()):
            centers, relocated = _relocate(rows, centers, allowed, empty)
            moving = moving | relocated
        active = moving
        if not bool(active.any()):
            break
    return Descent(centers, counts, inertia, rate, running, iteration)


def _relocate(rows: Rows, centers: Tensor, allowed: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
    """Move one empty center of each set to a row far from the others, where there is one in another place.

    Returns:
        The centers, and which sets ``(G, R)`` have changed.
    """
    place = torch.arange(LOOKED_AT, device=centers.device) * rows.num_rows[:, None] // LOOKED_AT
    if rows.place is not None:
        place = rows.place.gather(1, place)
    candidates = take(rows.values, place).float() - rows.shift[:, None]
    others = (allowed[:, None] & ~empty)[..., None]
    dots = torch.bmm(centers.flatten(1, 2), candidates.mT).unflatten(1, centers.shape[1:3])
    nearness = (centers.square().sum(-1, keepdim=True) - 2 * dots).masked_fill(~others, torch.inf).amin(2)
    index = (nearness + candidates.square().sum(-1)[:, None]).argmax(2)
    farthest = torch.take_along_dim(candidates[:, None], index[..., None, None], dim=2)
    # Measured again, coordinate by coordinate: only so is the distance of equal rows 0.
    distance = torch.where(others, (farthest - centers).square(), torch.inf).sum(-1).amin(-1)
    changed = empty.any(-1) & (distance > 0)
    first = empty & (empty.long().cumsum(-1) == 1)
    return torch.where((first & changed[..., None])[..., None], farthest, centers), changed
