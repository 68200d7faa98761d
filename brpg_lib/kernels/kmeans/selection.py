"""Which of the competing sets of centers a stage hands on."""

from __future__ import annotations

import torch
from torch import Tensor

from brpg_lib.kernels.kmeans.descent import Descent

_SAME = 0.01
"""Distance, in units of a cluster's spread, up to which two centers are the same."""


def finalists(found: Descent, allowed: Tensor, num_rows: Tensor, count: int, noise: float) -> Descent:
    """The best ``count`` sets of each group; those that repeat a better one, or are clearly worse, are not active.

    Args:
        found: Where the sets have ended.
        allowed: ``(G, K)`` bool, centers that exist.
        num_rows: ``(G,)`` rows that the inertia was measured on.
        count: How many go on at most.
        noise: How far the inertia may be above the best one's, times the square root of the rows.
    """
    order = found.inertia.argsort(dim=1, stable=True)
    inertia = found.inertia.gather(1, order)
    num_rows = num_rows.clamp(min=1)[:, None]
    radius = _SAME * (inertia[:, :1] / num_rows)
    worse = inertia > inertia[:, :1] * (1 + noise / num_rows.float().sqrt())
    group = torch.arange(len(order), device=order.device)[:, None]
    out = _repeats(found.centers[group, order], allowed, radius) | worse
    first = (out * out.shape[1] + torch.arange(out.shape[1], device=order.device)).argsort(dim=1)[:, :count]
    chosen = order.gather(1, first)
    return Descent(
        found.centers[group, chosen],
        found.counts[group, chosen],
        found.inertia[group, chosen],
        found.rate[group, chosen],
        found.active.any(1)[:, None] & ~out.gather(1, first),
        found.iterations,
    )


def _repeats(centers: Tensor, allowed: Tensor, radius: Tensor) -> Tensor:
    """Which sets ``(G, R)`` have each of their centers at some center of an earlier set.

    Args:
        centers: ``(G, R, K, D)``.
        allowed: ``(G, K)`` bool.
        radius: ``(G, 1)``, squared distance up to which two centers are the same.
    """
    groups, sets, clusters, _ = centers.shape
    flat = centers.flatten(1, 2)
    square = flat.square().sum(-1)
    between = square[:, :, None] + square[:, None] - 2 * torch.bmm(flat, flat.mT)
    between = between.view(groups, sets, clusters, sets, clusters)
    missing = ~allowed
    nearest = between.masked_fill(missing[:, None, None, None], torch.inf).amin(-1)
    farthest = nearest.masked_fill(missing[:, None, :, None], 0.0).amax(2)
    return (farthest <= radius[..., None]).tril(-1).any(2)
