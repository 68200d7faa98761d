"""Where the centers of a set start: greedy k-means++ (Arthur and Vassilvitskii, 2007)."""

from __future__ import annotations

import torch
from torch import Tensor

from brpg_lib.kernels.random import fold, uniform

CANDIDATES = 4
"""Rows among which each center of a seeding is chosen."""


def numbers(count: int, key: Tensor, stream: int) -> Tensor:
    """Uniform numbers ``(G, count)`` of a stream of each ``key (G,)``."""
    return uniform((count,), fold(key, stream))


def seed(rows: Tensor, num_rows: Tensor, allowed: Tensor, restarts: int, key: Tensor, stream: int) -> Tensor:
    """Greedy k-means++, all restarts at once: each center is the best of a few rows drawn by squared distance.

    Returns:
        ``(G, R, K, D)`` centers, for ``rows (G, n, D)`` near the origin.
    """
    (groups, length, dim), max_clusters = rows.shape, allowed.shape[1]
    valid = (torch.arange(length, device=rows.device) < num_rows[:, None])[:, None, None]
    square = rows.square().sum(-1)[:, None, None]
    centers = torch.zeros(groups, restarts, max_clusters, dim, dtype=torch.float32, device=rows.device)
    nearest = valid[:, 0].float().expand(groups, restarts, length)  # the first draw is uniform
    num_candidates = min(CANDIDATES, length)
    for cluster in range(max_clusters):
        count = 1 if cluster == 0 else num_candidates
        noise = uniform((restarts, length), fold(key, stream, cluster)).log()
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
