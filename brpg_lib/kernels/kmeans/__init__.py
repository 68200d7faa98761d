"""Batched, ragged, masked k-means: many independent groups of rows clustered at once, coarse to fine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from brpg_lib.kernels import lloyd
from brpg_lib.kernels.blocks import take
from brpg_lib.kernels.kmeans.descent import Descent, Rows
from brpg_lib.kernels.kmeans.selection import finalists
from brpg_lib.kernels.kmeans.steps import steps_for
from brpg_lib.kernels.lloyd import LloydFactory

_SEED_ROWS, _SEED_TOLERANCE = 256, 1e-2
"""Rows of each group among which seedings compete. They are copied, so that they lie together."""
_COARSE_ROWS, _RUN, _COARSE_TOLERANCE = 4096, 128, 1e-3
"""Rows of each group on which the finalists settle: runs of neighbours, as memory is fast in runs."""
_SMALL, _ROUNDING = 8192, 1e-7
"""Groups up to this size skip the coarse stage, and go on until only rounding is left to gain."""
_SEED_FINALISTS, _COARSE_FINALISTS = (3, 2.0), (2, 0.25)
"""How many sets of centers a stage hands on at most, and how far their inertia may be above the best one's, times the
square root of the rows: so far it may be off."""


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
    numbers, seed, descend = steps_for(backend, rows, max_clusters)
    allowed = torch.arange(max_clusters, device=rows.device) < torch.minimum(num_clusters, num_rows)[:, None]

    index, kept = _sample(num_rows, _SEED_ROWS, 1, numbers(_SEED_ROWS, key, 0))
    sample = take(rows, index).float()
    shift = _mean(sample, kept)
    sample -= shift[:, None]
    few = Rows(sample, kept, torch.zeros_like(shift), None)
    centers = seed(sample, kept, allowed, restarts, key, 1)
    found = Descent.start(centers, allowed.any(1)[:, None].expand(-1, restarts))
    found = descend(create, few, found, allowed, max_iterations, _loose(num_rows, _SEED_TOLERANCE))
    found = finalists(found, allowed, kept, *_SEED_FINALISTS)
    found = Descent.start(found.centers, found.active)  # so small a sample says nothing of the rate
    if rows.shape[1] > _SMALL:
        index, kept = _sample(num_rows, _COARSE_ROWS, _RUN, numbers(_COARSE_ROWS // _RUN, key, 2))
        more = Rows(rows, kept, shift, index)
        found = descend(create, more, found, allowed, max_iterations, _loose(num_rows, _COARSE_TOLERANCE))
        found = finalists(found, allowed, kept, *_COARSE_FINALISTS)
    every = Rows(rows, num_rows, shift, None)
    found = descend(create, every, found, allowed, max_iterations, _loose(num_rows, tolerance), race=True)
    return _finish(create, every, finalists(found, allowed, num_rows, 1, 0.0), allowed, weights, backend)


def prepare(rows: Tensor, max_clusters: int) -> None:
    """Try, and compile, what :func:`kmeans` will use for such ``rows (G, n, D)``."""
    steps_for(lloyd.choose(rows, max_clusters), rows, max_clusters)


def _loose(num_rows: Tensor, tolerance: float) -> Tensor:
    """Tolerance ``(G, 1)`` of each group: none for those so small that going on costs nothing."""
    found = torch.full_like(num_rows, tolerance, dtype=torch.float32)
    return found.masked_fill(num_rows <= _SMALL, _ROUNDING)[:, None]


def _sample(num_rows: Tensor, size: int, run: int, draw: Tensor) -> tuple[Tensor, Tensor]:
    """Indices ``(G, size)`` of rows spread at random over each group, in runs of neighbours; how many count ``(G,)``.

    Of a group that is no larger, all of them. ``draw (G, size // run)`` are uniform numbers.
    """
    device = num_rows.device
    runs = size // run
    place = torch.arange(runs, device=device) + draw
    start = (place * ((num_rows - run).clamp(min=0).float() / runs)[:, None]).long()
    index = (start[..., None] + torch.arange(run, device=device)).flatten(1)
    every = torch.arange(size, device=device).minimum((num_rows - 1).clamp(min=0)[:, None])
    return torch.where((num_rows > size)[:, None], index, every), num_rows.clamp(max=size)


def _mean(rows: Tensor, num_rows: Tensor) -> Tensor:
    """Mean ``(G, D)`` of the first ``num_rows (G,)`` of the rows ``(G, n, D)``."""
    share = (torch.arange(rows.shape[1], device=rows.device) < num_rows[:, None]).float()
    return torch.bmm((share / num_rows.clamp(min=1)[:, None])[:, None], rows)[:, 0]


def _finish(
    create: LloydFactory, rows: Rows, found: Descent, allowed: Tensor, weights: Tensor | None, backend: str
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
