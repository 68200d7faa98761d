"""Sums of four taps, and their gradient, on float32 maps in host memory, as compiled loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from brpg_lib.kernels.compiled import compiled, numba, torch_threads

_CHANNELS = 32  # of which one task reads all points: two cache lines of a point, and maps that fit the cache


def gather(maps: Tensor, image: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Values ``(N, D)`` at ``places (4, N)`` of ``image (N,)`` in ``maps (B, D, h * w)`` times ``weights (4, N)``."""
    values = torch.empty(len(image), maps.shape[1], dtype=torch.float32, device="cpu")
    with torch_threads():
        _gather(maps.numpy(), image.numpy(), places.numpy(), weights.numpy(), values.numpy())
    return values


def spread(gradient: Tensor, image: Tensor, places: Tensor, weights: Tensor, size: tuple[int, int, int]) -> Tensor:
    """What :func:`gather` has taken from each place of maps ``size (B, D, h * w)``; always summed in the same order."""
    # numpy asks the system for large pages: torch would spend several times as long on having small ones mapped.
    maps = np.empty(size, np.float32)
    with torch_threads():
        _spread(gradient.numpy(), image.numpy(), places.numpy(), weights.numpy(), maps)
    return torch.from_numpy(maps)


@compiled
def _gather(maps: Any, image: Any, places: Any, weights: Any, values: Any) -> None:
    points, channels = values.shape
    for task in numba.prange(-(-channels // _CHANNELS)):
        begin = task * _CHANNELS
        end = min(begin + _CHANNELS, channels)
        for n in range(points):
            p, q, r, s = places[0, n], places[1, n], places[2, n], places[3, n]
            a, b, c, d = weights[0, n], weights[1, n], weights[2, n], weights[3, n]
            for channel in range(begin, end):
                own = maps[image[n], channel]
                values[n, channel] = a * own[p] + b * own[q] + c * own[r] + d * own[s]


@compiled
def _spread(gradient: Any, image: Any, places: Any, weights: Any, maps: Any) -> None:
    images, channels, _ = maps.shape
    start = np.zeros(images + 1, np.int64)
    for own in image:
        start[own + 1] += 1
    for own in range(images):
        start[own + 1] += start[own]
    order, free = np.empty(len(image), np.int64), start.copy()
    for n in range(len(image)):
        order[free[image[n]]] = n
        free[image[n]] += 1
    for task in numba.prange(images * channels):
        own, channel = task // channels, task % channels
        sums = maps[own, channel]
        sums[:] = 0  # as a stream; then adding to places all over it finds them in the cache
        for i in range(start[own], start[own + 1]):
            n = order[i]
            for tap in range(4):
                sums[places[tap, n]] += weights[tap, n] * gradient[n, channel]
