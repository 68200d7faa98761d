"""The k-means pass on the CPU as one compiled loop at memory speed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from brpg_lib.kernels.compiled import FAST, compiled, numba, torch_threads
from brpg_lib.kernels.lloyd.interface import Pass, inertia_about_means

_HOST: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever the process has as its defaults
_CHUNK = 4096  # rows that one task adds up; fixed, so that results do not depend on the number of threads
_BLOCK = 256  # rows that stay in the cache while several sets of centers look at them


class NumbaLloyd:
    """Passes over float32 rows in host memory; see :class:`~brpg_lib.kernels.lloyd.interface.Lloyd`.

    The first pass reads every row and notes how much nearer its center is than the next one. Centers can eat up this
    margin only by moving (Hamerly 2010), so that later passes read just the rows whose margin is used up.
    """

    def __init__(self, rows: Tensor, num_rows: Tensor, shift: Tensor, index: Tensor | None = None) -> None:
        if rows.stride()[1:] != (rows.shape[2], 1):
            rows = rows.contiguous()
        # As one line of numbers, however far apart the groups lie: numba compiles for a layout.
        self.group_stride, self.flat = rows.stride(0), rows.as_strided((_extent(rows),), (1,))
        self.num_rows, self.shift, self.index = num_rows, shift, index
        self.length = rows.shape[1] if index is None else index.shape[1]
        self.centers: Tensor | None = None

    def __call__(self, centers: Tensor, allowed: Tensor, active: Tensor, weights: Tensor | None = None) -> Pass:
        """See :meth:`brpg_lib.kernels.lloyd.interface.Lloyd.__call__`."""
        groups, sets, clusters, dim = centers.shape
        first = self.centers is None
        if self.centers is None:
            self.margin = torch.empty(groups, sets, self.length, **_HOST)
            self.label = torch.empty(groups, sets, self.length, dtype=torch.int16, device="cpu")
            self.sums = torch.zeros(groups, sets, clusters, dim, **_HOST)
            self.counts = torch.zeros(groups, sets, clusters, **_HOST)
            self.total = torch.zeros(groups, sets, dtype=torch.float64, device="cpu")
            moved = torch.zeros(groups, sets, clusters, **_HOST)
        else:
            moved = torch.linalg.vector_norm(centers - self.centers, dim=-1) * (1 + 1e-5)
        # Rows of a center come nearer to another one by at most what both have moved.
        order = moved.sort(dim=-1, descending=True).values
        others = torch.where(moved == order[..., :1], order[..., min(1, clusters - 1), None], order[..., :1])
        chosen = active.any(1).nonzero()[:, 0]
        partial = (len(chosen), -(-self.length // _CHUNK), sets)
        sums, counts = torch.empty(*partial, clusters, dim, **_HOST), torch.empty(*partial, clusters, **_HOST)
        squares = torch.empty(partial, **_HOST)
        nothing = np.empty((0, 0))
        with torch_threads():
            _pass(
                first,
                chosen.numpy(),
                self.flat.numpy(),
                self.group_stride,
                self.num_rows.numpy(),
                self.shift.numpy(),
                nothing.astype(np.int64) if self.index is None else self.index.numpy(),
                (centers + self.shift[:, None, None]).numpy(),
                allowed.contiguous().numpy(),
                active.contiguous().numpy(),
                nothing.astype(np.float32) if weights is None else weights.numpy(),
                (moved + others).numpy(),
                *(values.numpy() for values in (self.margin, self.label, sums, counts, squares)),
            )
        self.centers = centers
        self.sums.index_add_(0, chosen, sums.sum(1))
        self.counts.index_add_(0, chosen, counts.sum(1))
        if first:
            self.total.index_add_(0, chosen, squares.double().sum(1))
        return Pass(self.sums.clone(), self.counts.clone(), inertia_about_means(self.total, self.sums, self.counts))


def _extent(rows: Tensor) -> int:
    """Numbers from the first to the last of a tensor, with those between that do not belong to it."""
    return 1 + sum((size - 1) * stride for size, stride in zip(rows.shape, rows.stride(), strict=True))


@compiled
def _pass(
    first: Any, chosen: Any, flat: Any, group_stride: Any, num_rows: Any, shift: Any, index: Any, centers: Any,
    allowed: Any, active: Any, weights: Any, loosened: Any, margin: Any, label: Any, sums: Any, counts: Any,
    squares: Any,
) -> None:  # fmt: skip
    """Add up the rows of each center (first pass), or what has changed since the pass before (others)."""
    num_chosen, num_chunks, sets, clusters, dim = sums.shape
    indexed, weighted = index.size > 0, weights.size > 0
    for task in numba.prange(num_chosen * num_chunks):
        out, chunk = task // num_chunks, task % num_chunks
        group = chosen[out]
        own_sums, own_counts = np.zeros((sets, clusters, dim), np.float32), np.zeros((sets, clusters), np.float32)
        own_squares, todo = np.zeros(sets, np.float32), np.empty(_BLOCK, np.int64)
        center, middle = centers[group].copy(), shift[group]
        size = 0
        for k in range(clusters):
            size += allowed[group, k]
        stop = min(num_rows[group], (chunk + 1) * _CHUNK) if size > 0 else 0
        for begin in range(chunk * _CHUNK, stop, _BLOCK):
            end = min(begin + _BLOCK, stop)
            for s in range(sets):
                if not active[group, s]:
                    continue
                # First which rows to read, then reading them: without a branch between, the processor reads ahead.
                count = 0
                for place in range(begin, end):
                    todo[count] = place
                    if first:
                        count += 1
                    else:
                        margin[group, s, place] -= loosened[group, s, label[group, s, place]]
                        count += margin[group, s, place] <= 0
                for i in range(count):
                    place = todo[i]
                    at = index[group, place] if indexed else place
                    start = group * group_stride + at * dim
                    row = flat[start : start + dim]
                    weight = weights[group, at] if weighted else np.float32(1)
                    best, nearest, second = _nearest(row, center[s], size, dim)
                    # Less what rounding may have added.
                    margin[group, s, place] = np.sqrt(second) * np.float32(1 - 1e-5) - np.sqrt(nearest)
                    old = -1 if first else label[group, s, place]
                    if best == old:
                        continue
                    label[group, s, place] = best
                    own_counts[s, best] += weight
                    gains, square = own_sums[s, best], np.float32(0)
                    for d in range(dim):
                        value = row[d] - middle[d]
                        gains[d] += weight * value
                        square += value * value
                    if first:
                        own_squares[s] += square
                    else:
                        own_counts[s, old] -= weight
                        loses = own_sums[s, old]
                        for d in range(dim):
                            loses[d] -= weight * (row[d] - middle[d])
        sums[out, chunk], counts[out, chunk], squares[out, chunk] = own_sums, own_counts, own_squares


@numba.njit(fastmath=FAST)
def _nearest(row: Any, center: Any, size: int, dim: int) -> Any:
    """Index of the nearest center, and the squared distances to it and to the next one."""
    best, nearest, second = 0, np.float32(np.inf), np.float32(np.inf)
    k = 0
    while k + 4 <= size:  # four at a time, so that the row is loaded less often
        a, b, c, d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for i in range(dim):
            value = row[i]
            p, q = value - center[k, i], value - center[k + 1, i]
            r, s = value - center[k + 2, i], value - center[k + 3, i]
            a, b, c, d = a + p * p, b + q * q, c + r * r, d + s * s
        best, nearest, second = _fold(best, nearest, second, k, a)
        best, nearest, second = _fold(best, nearest, second, k + 1, b)
        best, nearest, second = _fold(best, nearest, second, k + 2, c)
        best, nearest, second = _fold(best, nearest, second, k + 3, d)
        k += 4
    while k < size:
        a = np.float32(0)
        for i in range(dim):
            p = row[i] - center[k, i]
            a += p * p
        best, nearest, second = _fold(best, nearest, second, k, a)
        k += 1
    return best, nearest, second


@numba.njit(fastmath=FAST)
def _fold(best: int, nearest: Any, second: Any, k: int, distance: Any) -> Any:
    """Take center k at a distance into account, without a branch."""
    return k if distance < nearest else best, min(nearest, distance), min(second, max(nearest, distance))
