"""Batched, ragged, masked k-means: many independent groups of rows clustered at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from brpg_lib.kernels import lloyd
from brpg_lib.kernels.blocks import take
from brpg_lib.kernels.lloyd import LloydFactory
from brpg_lib.kernels.random import fold, uniform

_SEED_ROWS, _SEED_TOLERANCE = 256, 1e-2
"""Rows of each group among which seedings compete. They are copied, so that they lie together."""
_CANDIDATES = 4
"""Rows among which each center of a seeding is chosen."""
_COARSE_ROWS, _RUN, _COARSE_TOLERANCE = 4096, 128, 1e-3
"""Rows of each group on which the finalists settle: runs of neighbours, as memory is fast in runs."""
_SMALL, _ROUNDING = 8192, 1e-7
"""Groups up to this size skip the coarse stage, and go on until only rounding is left to gain."""
_SAME = 0.01
"""Distance, in units of a cluster's spread, up to which two centers are the same."""
_SEED_FINALISTS, _COARSE_FINALISTS = (3, 2.0), (2, 0.25)
"""How many sets of centers a stage hands on at most, and how far their inertia may be above the best one's, times the
square root of the rows: so far it may be off."""
_MAX_RATE, _DECAY = 0.9, 0.5
"""Largest rate at which gains are taken to shrink, and how fast the estimate may fall."""
_LOOKED_AT = 1024
"""Rows of each group among which an empty cluster looks for a new place."""


@dataclass(frozen=True)
class Clustering:
    """The result of :func:`kmeans` for G groups and at most K clusters.

    Attributes:
        centroids: ``(G, K, D)`` float32, zero where there is no cluster.
        counts: ``(G, K)`` int64 rows of each cluster; 0 means that there is none.
        inertia: ``(G,)`` float32 sum of squared distances of the rows to their cluster's mean.
        iterations: Lloyd iterations in the last stage, over all rows.
        backend: What ran them, one of :data:`brpg_lib.kernels.lloyd.BACKENDS`.
    """

    centroids: Tensor
    counts: Tensor
    inertia: Tensor
    iterations: int
    backend: str


class _Rows(NamedTuple):
    """What a stage clusters: the arguments of a :data:`~brpg_lib.kernels.lloyd.LloydFactory`."""

    values: Tensor  # (G, n, D)
    num_rows: Tensor  # (G,)
    shift: Tensor  # (G, D)
    place: Tensor | None  # (G, m), its `index`


class _Descent(NamedTuple):
    """Where Lloyd iterations ended, for R competing sets of centers per group, relative to the shift."""

    centers: Tensor  # (G, R, K, D)
    counts: Tensor  # (G, R, K)
    inertia: Tensor  # (G, R)
    rate: Tensor  # (G, R), how the gains shrank
    active: Tensor  # (G, R), sets that are still in the race
    iterations: int = 0

    @classmethod
    def start(cls, centers: Tensor, active: Tensor) -> _Descent:
        """From ``centers``, of which nothing is known."""
        nothing = torch.zeros_like(centers[..., 0])
        return cls(centers, nothing, nothing[..., 0], torch.full_like(nothing[..., 0], _MAX_RATE), active)


def kmeans(
    rows: Tensor,
    num_rows: Tensor,
    num_clusters: Tensor,
    key: Tensor,
    *,
    weights: Tensor | None = None,
    restarts: int = 8,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    backend: str | None = None,
) -> Clustering:
    """Cluster G groups of rows at once: k-means++ seeding, Lloyd iterations, the best of several restarts.

    Coarse to fine: the restarts compete on a few rows of each group, the best that differ go on with more rows, then
    those that are too close to tell, mostly one, with all.

    Args:
        rows: ``(G, n, D)`` floating point; the first ``num_rows[g]`` rows of group ``g`` count.
        num_rows: ``(G,)`` int64.
        num_clusters: ``(G,)`` int64, clusters wanted per group; a group with fewer distinct rows gets fewer.
        key: ``(G,)`` int64 that seed the draws of each group: its clusters do not depend on the groups beside it.
        weights: ``(G, n)`` of each row in the returned centroids, or ``None`` for means. Assignment ignores them.
        restarts: Seedings that compete.
        max_iterations: Bound of the Lloyd iterations of each stage.
        tolerance: A group has converged when further iterations would lower its inertia by less than this share.
        backend: One of :data:`brpg_lib.kernels.lloyd.BACKENDS`, or ``None`` for the fastest that there is.

    Returns:
        Centroids, counts and inertia of each group.
    """
    max_clusters = int(num_clusters.max())
    backend = lloyd.choose(rows, max_clusters) if backend is None else backend
    create = lloyd.load(backend)
    allowed = torch.arange(max_clusters, device=rows.device) < torch.minimum(num_clusters, num_rows)[:, None]

    index, kept = _sample(num_rows, _SEED_ROWS, 1, fold(key, 0))
    sample = take(rows, index).float()
    shift = _mean(sample, kept)
    sample -= shift[:, None]
    few = _Rows(sample, kept, torch.zeros_like(shift), None)
    found = _Descent.start(
        _seed(sample, kept, allowed, restarts, fold(key, 1)), allowed.any(1)[:, None].expand(-1, restarts)
    )
    found = _descend(create, few, found, allowed, max_iterations, _loose(num_rows, _SEED_TOLERANCE))
    found = _finalists(found, allowed, kept, *_SEED_FINALISTS)
    found = _Descent.start(found.centers, found.active)  # so small a sample says nothing of the rate
    if rows.shape[1] > _SMALL:
        index, kept = _sample(num_rows, _COARSE_ROWS, _RUN, fold(key, 2))
        more = _Rows(rows, kept, shift, index)
        found = _descend(create, more, found, allowed, max_iterations, _loose(num_rows, _COARSE_TOLERANCE))
        found = _finalists(found, allowed, kept, *_COARSE_FINALISTS)
    every = _Rows(rows, num_rows, shift, None)
    found = _descend(create, every, found, allowed, max_iterations, _loose(num_rows, tolerance), race=True)
    return _finish(create, every, _finalists(found, allowed, num_rows, 1, 0.0), allowed, weights, backend)


def _finalists(found: _Descent, allowed: Tensor, num_rows: Tensor, count: int, noise: float) -> _Descent:
    """The best ``count`` sets of each group; repetitions, and sets worse than sampling noise explains, not active."""
    groups, sets, clusters, _ = found.centers.shape
    order = found.inertia.argsort(dim=1, stable=True)
    inertia = found.inertia.gather(1, order)
    flat = torch.take_along_dim(found.centers, order[..., None, None], dim=1).flatten(1, 2)
    # Two sets are the same where each center of one lies at some center of the other.
    square = flat.square().sum(-1)
    between = square[:, :, None] + square[:, None] - 2 * torch.bmm(flat, flat.mT)
    between = between.view(groups, sets, clusters, sets, clusters)
    between = between.masked_fill(~allowed[:, None, None, None], torch.inf).amin(-1)
    between = between.masked_fill(~allowed[:, None, :, None], 0.0).amax(2)
    num_rows = num_rows.clamp(min=1)[:, None]
    repeats = (between <= _SAME * (inertia[:, :1] / num_rows)[..., None]).tril(-1).any(2)
    worse = inertia > inertia[:, :1] * (1 + noise / num_rows.sqrt())
    out = repeats | worse
    first = (out * sets + torch.arange(sets, device=order.device)).argsort(dim=1)[:, :count]
    chosen = order.gather(1, first)
    return _Descent(
        torch.take_along_dim(found.centers, chosen[..., None, None], dim=1),
        torch.take_along_dim(found.counts, chosen[..., None], dim=1),
        found.inertia.gather(1, chosen),
        found.rate.gather(1, chosen),
        found.active.any(1)[:, None] & ~out.gather(1, first),
        found.iterations,
    )


def _loose(num_rows: Tensor, tolerance: float) -> Tensor:
    """Tolerance ``(G, 1)`` of each group: none for those so small that going on costs nothing."""
    return torch.where(num_rows > _SMALL, tolerance, _ROUNDING)[:, None]


def _sample(num_rows: Tensor, size: int, run: int, key: Tensor) -> tuple[Tensor, Tensor]:
    """Indices ``(G, size)`` of rows spread at random over each group, in runs of neighbours; how many count ``(G,)``.

    Of a group that is no larger, all of them.
    """
    device = num_rows.device
    runs = size // run
    place = torch.arange(runs, device=device) + uniform((runs,), key)
    start = (place * ((num_rows - run).clamp(min=0) / runs)[:, None]).long()
    index = (start[..., None] + torch.arange(run, device=device)).flatten(1)
    every = torch.arange(size, device=device).minimum((num_rows - 1).clamp(min=0)[:, None])
    return torch.where((num_rows > size)[:, None], index, every), num_rows.clamp(max=size)


def _mean(rows: Tensor, num_rows: Tensor) -> Tensor:
    """Mean ``(G, D)`` of the first ``num_rows (G,)`` of the rows ``(G, n, D)``."""
    share = (torch.arange(rows.shape[1], device=rows.device) < num_rows[:, None]).float()
    return torch.bmm((share / num_rows.clamp(min=1)[:, None])[:, None], rows)[:, 0]


def _seed(rows: Tensor, num_rows: Tensor, allowed: Tensor, restarts: int, key: Tensor) -> Tensor:
    """Greedy k-means++, all restarts at once: each center is the best of a few rows drawn by squared distance.

    Returns:
        ``(G, R, K, D)`` centers, for ``rows (G, n, D)`` near the origin.
    """
    (groups, length, dim), max_clusters = rows.shape, allowed.shape[1]
    valid = (torch.arange(length, device=rows.device) < num_rows[:, None])[:, None, None]
    square = rows.square().sum(-1)[:, None, None]
    centers = torch.zeros(groups, restarts, max_clusters, dim, device=rows.device)
    nearest = valid[:, 0].float().expand(groups, restarts, length)  # the first draw is uniform
    num_candidates = min(_CANDIDATES, length)
    for cluster in range(max_clusters):
        count = 1 if cluster == 0 else num_candidates
        noise = uniform((restarts, length), fold(key, cluster)).log()
        # An exponential race draws rows in proportion to their weight; zero-weight rows never win.
        race = torch.where(nearest > 0, noise / nearest.clamp(min=1e-30), -torch.inf)
        candidates = race.topk(count, dim=2).indices
        vectors = torch.take_along_dim(rows[:, None], candidates[..., None], dim=2)
        dots = torch.bmm(vectors.flatten(1, 2), rows.mT).view(groups, restarts, count, length)
        distances = dots.mul_(-2).add_(square).add_(vectors.square().sum(-1, keepdim=True)).clamp_(min=0.0)
        distances.masked_fill_(~valid, 0.0)
        if cluster > 0:
            distances = torch.minimum(distances, nearest[:, :, None])
        winner = distances.sum(3).argmin(2)[..., None, None]
        centers[:, :, cluster] = torch.take_along_dim(vectors, winner, dim=2)[:, :, 0]
        nearest = torch.take_along_dim(distances, winner, dim=2)[:, :, 0]
    return centers


def _descend(
    create: LloydFactory,
    rows: _Rows,
    found: _Descent,
    allowed: Tensor,
    max_iterations: int,
    tolerance: Tensor,
    race: bool = False,
) -> _Descent:
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
            shrunk = (saved / gain.clamp(min=1e-30)).clamp(max=_MAX_RATE)
            rate = torch.where(active, torch.maximum(shrunk, _DECAY * rate), rate)
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
    return _Descent(centers, counts, inertia, rate, running, iteration)


def _relocate(rows: _Rows, centers: Tensor, allowed: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
    """Move one empty center of each set to a row far from the others, where there is one in another place.

    Returns:
        The centers, and which sets ``(G, R)`` have changed.
    """
    place = torch.arange(_LOOKED_AT, device=centers.device) * rows.num_rows[:, None] // _LOOKED_AT
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


def _finish(
    create: LloydFactory, rows: _Rows, found: _Descent, allowed: Tensor, weights: Tensor | None, backend: str
) -> Clustering:
    """The one set of centers that is left, as absolute centroids."""
    centers, counts = found.centers, found.counts
    if weights is not None:
        weighted = create(*rows)(centers, allowed, allowed.any(1)[:, None], weights.float())
        total = weighted.counts[..., None]
        centers = torch.where((counts > 0)[..., None] & (total > 0), weighted.sums / total.clamp(min=1e-12), centers)
    counts = counts[:, 0]
    exists = counts > 0
    centroids = torch.where(exists[..., None], centers[:, 0] + rows.shift[:, None], 0.0)
    inertia = torch.where(exists.any(1), found.inertia[:, 0], 0.0)
    return Clustering(centroids, counts.long(), inertia, found.iterations, backend)
