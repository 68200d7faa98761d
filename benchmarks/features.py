"""Queues of made-up features that look like those of a trained network."""

from __future__ import annotations

import torch
from torch import Tensor

from brpg_lib.benchmarks.presets import Preset

MODES = (0.4, 0.3, 0.15, 0.1, 0.05)
"""Shares of the modes that each group is a mixture of."""
SUBSPACE = 32


def group(num_rows: int, dim: int, generator: torch.Generator) -> Tensor:
    """``(num_rows, dim)``: modes in a random subspace, noise in all directions, then ReLU."""
    device = generator.device
    directions = torch.randn(SUBSPACE, dim, generator=generator, device=device) / 6
    centers = torch.randn(len(MODES), SUBSPACE, generator=generator, device=device) * 0.7
    shares = torch.tensor(MODES, device=device)
    mode = torch.multinomial(shares, num_rows, replacement=True, generator=generator)
    inside = centers[mode] + torch.randn(num_rows, SUBSPACE, generator=generator, device=device)
    noise = torch.randn(num_rows, dim, generator=generator, device=device).mul_(0.5).add_(0.3)
    return noise.addmm_(inside, directions).relu_()


def queue(preset: Preset, device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Full queues ``(G, n, D)`` of two groups per class, and the clusters wanted in each ``(G,)``.

    The groups with one more cluster lie first, so that those with equally many are one slice.
    """
    generator = torch.Generator(device).manual_seed(seed)
    groups = 2 * preset.num_classes
    rows = torch.empty(groups, preset.queue_size, preset.feature_dim, device=device)
    for place in rows:
        place.copy_(group(preset.queue_size, preset.feature_dim, generator))
    clusters = torch.tensor(preset.num_prototypes, device=device).repeat(preset.num_classes)
    clusters[: 2 * preset.num_split] += 1
    return rows, clusters


def exact_inertia(rows: Tensor, centroids: Tensor) -> float:
    """Sum of squared distances of rows ``(n, D)`` to the nearest of ``centroids (K, D)``, in float64."""
    rows = rows.double()
    nearest = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=rows.device)
    for centroid in centroids.to(rows):
        torch.minimum(nearest, (rows - centroid).square_().sum(1), out=nearest)
    return float(nearest.sum())
