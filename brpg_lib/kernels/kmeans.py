"""Batched, ragged, masked k-means: many independent groups of rows clustered at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from brpg_lib.kernels.random import fold, uniform

_BLOCK_BYTES = 64 * 2**20  # of one float32 copy of a block of rows, where the rows are in half precision
_COARSE_ROWS = 2048
_MAX_CANDIDATES = 6


@dataclass(frozen=True)
class Clustering:
    """The result of :func:`kmeans` for G groups and at most K clusters.

    Attributes:
        centroids: ``(G, K, D)`` float32, zero where there is no cluster.
        counts: ``(G, K)`` int64 rows of each cluster; 0 means that there is none.
        inertia: ``(G,)`` float32 sum of squared distances to the nearest centroid.
        iterations: Lloyd iterations over all rows.
    """

    centroids: Tensor
    counts: Tensor
    inertia: Tensor
    iterations: int


@dataclass(frozen=True)
class _Problem:
    """Rows seen relative to their group's mean: that keeps float32 exact enough for data far from the origin."""

    rows: Tensor  # (G, n, D)
    valid: Tensor  # (G, n)
    mean: Tensor  # (G, D) float32
    square: Tensor  # (G, n) float32: squared distance to the mean, 0 for invalid rows

    @classmethod
    def of(cls, rows: Tensor, num_rows: Tensor) -> _Problem:
        valid = torch.arange(rows.shape[1], device=rows.device) < num_rows[:, None]
        ones = valid.float()[..., None]
        mean = _accumulate(rows, ones)[:, 0] / num_rows.clamp(min=1)[:, None]
        square = torch.cat([(block.float() - mean[:, None]).square().sum(-1) for _, block in _blocks(rows)], dim=1)
        return cls(rows, valid, mean, square.masked_fill(~valid, 0.0))

    def distances(self, centers: Tensor) -> Tensor:
        """Squared distances ``(G, n, K)`` of the rows to ``centers (G, K, D)``, given relative to the mean."""
        offset = centers.square().sum(-1) + 2 * (centers @ self.mean[..., None])[..., 0]
        dots = torch.cat([torch.bmm(block.float(), centers.mT) for _, block in _blocks(self.rows)], dim=1)
        return (self.square[..., None] + offset[:, None] - 2 * dots).clamp_(min=0.0)

    def gather(self, index: Tensor) -> Tensor:
        """Rows ``(G, m, D)`` at ``index (G, m)``, relative to the mean."""
        picked = torch.take_along_dim(self.rows, index[..., None], dim=1)
        return picked.float() - self.mean[:, None]


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
) -> Clustering:
    """Cluster G groups of rows at once: k-means++ seeding, Lloyd iterations, the best of several restarts.

    Restarts compete on evenly spaced rows of each group, at most 2048; the winner of each group is then refined on all
    rows.

    Args:
        rows: ``(G, n, D)`` floating point; the first ``num_rows[g]`` rows of group ``g`` count.
        num_rows: ``(G,)`` int64.
        num_clusters: ``(G,)`` int64, clusters wanted per group; a group with fewer distinct rows gets fewer.
        key: ``()`` int64 that seeds the draw.
        weights: ``(G, n)`` of each row in the returned centroids, or ``None`` for means. Assignment ignores them.
        restarts: Seedings that compete.
        max_iterations: Bound of the Lloyd iterations of each stage.
        tolerance: A group has converged when its centers move less than this share of its variance.

    Returns:
        Centroids, counts and inertia of each group.
    """
    max_clusters = int(num_clusters.max())
    allowed = torch.arange(max_clusters, device=rows.device) < torch.minimum(num_clusters, num_rows)[:, None]
    full = _Problem.of(rows, num_rows)
    coarse = full if rows.shape[1] <= _COARSE_ROWS else _Problem.of(*_subsample(rows, num_rows))
    best_centers, best_inertia = None, None
    for restart in range(restarts):
        seeds = _seed(coarse, allowed, fold(key, restart))
        centers, inertia, _ = _lloyd(coarse, seeds, allowed, max_iterations, tolerance)
        if best_centers is None or best_inertia is None:
            best_centers, best_inertia = centers, inertia
        else:
            better = inertia < best_inertia
            best_centers = torch.where(better[:, None, None], centers, best_centers)
            best_inertia = torch.minimum(inertia, best_inertia)
    assert best_centers is not None
    iterations = 0
    if coarse is not full:
        best_centers = best_centers + (coarse.mean - full.mean)[:, None]
        best_centers, _, iterations = _lloyd(full, best_centers, allowed, max_iterations, tolerance)
    return _finish(full, best_centers, allowed, weights, iterations)


def _subsample(rows: Tensor, num_rows: Tensor) -> tuple[Tensor, Tensor]:
    """Evenly spaced rows ``(G, 2048, D)`` of each group, all of a smaller one; and how many of them count ``(G,)``."""
    kept = num_rows.clamp(max=_COARSE_ROWS)
    place = torch.arange(_COARSE_ROWS, device=rows.device) * num_rows[:, None] // kept.clamp(min=1)[:, None]
    group = torch.arange(rows.shape[0], device=rows.device)
    return rows[group[:, None], place], kept


def _blocks(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Blocks of rows whose float32 copy stays small; float32 rows need no copy and come whole."""
    if rows.dtype == torch.float32:
        yield 0, rows
        return
    step = max(1, _BLOCK_BYTES // (4 * rows.shape[0] * rows.shape[2]))
    for start in range(0, rows.shape[1], step):
        yield start, rows[:, start : start + step]


def _accumulate(rows: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums ``(G, K, D)`` of ``rows (G, n, D)`` under ``weights (G, n, K)``, in float32."""
    total = torch.zeros(rows.shape[0], weights.shape[2], rows.shape[2], device=rows.device)
    for start, block in _blocks(rows):
        total += torch.bmm(weights[:, start : start + block.shape[1]].mT, block.float())
    return total


def _seed(problem: _Problem, allowed: Tensor, key: Tensor) -> Tensor:
    """Greedy k-means++: each center is the best of a few rows drawn in proportion to their squared distance."""
    num_groups, num_rows = problem.valid.shape
    max_clusters = allowed.shape[1]
    centers = torch.zeros(num_groups, max_clusters, problem.rows.shape[2], device=problem.rows.device)
    nearest = torch.where(problem.valid, 1.0, 0.0)  # the first draw is uniform
    num_candidates = min(2 + math.ceil(math.log2(max_clusters + 1)), _MAX_CANDIDATES, num_rows)
    for cluster in range(max_clusters):
        noise = uniform((num_groups, num_rows), fold(key, cluster)).log()
        # An exponential race draws rows in proportion to their weight; zero-weight rows never win.
        race = torch.where(nearest > 0, noise / nearest.clamp(min=1e-30), -torch.inf)
        candidates = race.topk(1 if cluster == 0 else num_candidates, dim=1).indices
        vectors = problem.gather(candidates)
        distances = problem.distances(vectors).masked_fill(~problem.valid[..., None], 0.0)
        if cluster > 0:
            distances = torch.minimum(distances, nearest[..., None])
        winner = distances.sum(1).argmin(1)[:, None, None]
        centers[:, cluster] = torch.take_along_dim(vectors, winner, dim=1)[:, 0]
        nearest = torch.take_along_dim(distances, winner, dim=2)[..., 0]
    return centers


def _assign(problem: _Problem, centers: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """One-hot assignment ``(G, n, K)`` float32 and squared distances ``(G, n)``, zero for invalid rows."""
    distances, index = problem.distances(centers).masked_fill(~allowed[:, None], torch.inf).min(dim=-1)
    one_hot = torch.nn.functional.one_hot(index, centers.shape[1]).float()
    has_center = allowed.any(1)[:, None] & problem.valid
    return one_hot * has_center[..., None], distances.masked_fill(~has_center, 0.0)


def _lloyd(
    problem: _Problem, centers: Tensor, allowed: Tensor, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, int]:
    """Iterate to convergence; returns centers (relative to the mean), inertia ``(G,)`` and the iterations run."""
    threshold = tolerance * problem.square.sum(1) / problem.valid.sum(1).clamp(min=1)
    for iteration in range(max_iterations):
        one_hot, distances = _assign(problem, centers, allowed)
        counts = one_hot.sum(1)
        means = _accumulate(problem.rows, one_hot) / counts.clamp(min=1)[..., None] - problem.mean[:, None]
        moved = torch.where((counts > 0)[..., None], means, centers)
        empty = allowed & (counts == 0)
        if bool(empty.any()):
            moved = _relocate(problem, moved, empty, distances)
        shift = (moved - centers).square().sum((1, 2))
        centers = moved
        if bool((shift <= threshold).all()):
            return centers, _assign(problem, centers, allowed)[1].sum(1), iteration + 1
    return centers, _assign(problem, centers, allowed)[1].sum(1), max_iterations


def _relocate(problem: _Problem, centers: Tensor, empty: Tensor, distances: Tensor) -> Tensor:
    """Move the centers of empty clusters to the rows farthest from their own center, where there are such rows."""
    depth = min(centers.shape[1], distances.shape[1])
    farthest, index = distances.topk(depth, dim=1)
    order = (empty.long().cumsum(1) - 1).clamp(min=0, max=depth - 1)  # the k-th empty cluster takes the k-th row
    target = torch.take_along_dim(index, order, dim=1)
    useful = empty & (torch.take_along_dim(farthest, order, dim=1) > 0)
    return torch.where(useful[..., None], problem.gather(target), centers)


def _finish(problem: _Problem, centers: Tensor, allowed: Tensor, weights: Tensor | None, iterations: int) -> Clustering:
    """The centroids of the final assignment, and the inertia of that assignment about its means."""
    one_hot, _ = _assign(problem, centers, allowed)
    counts = one_hot.sum(1)
    exists = (counts > 0)[..., None]
    means = _accumulate(problem.rows, one_hot) / counts.clamp(min=1)[..., None]
    relative = torch.where(exists, means - problem.mean[:, None], 0.0)
    inertia = _assign(problem, relative, allowed & exists[..., 0])[1].sum(1)
    if weights is not None:
        share = one_hot * weights.float()[..., None]
        total = share.sum(1)[..., None]
        weighted = _accumulate(problem.rows, share) / total.clamp(min=1e-12)
        means = torch.where(total > 0, weighted, means)
    return Clustering(torch.where(exists, means, 0.0), counts.long(), inertia, iterations)
