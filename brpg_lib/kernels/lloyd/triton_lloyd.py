"""The k-means pass on CUDA: assignment and sums fused, so that each row is read once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from brpg_lib.kernels.lloyd import triton_few, triton_many
from brpg_lib.kernels.lloyd.interface import Pass, inertia_about_means

CHUNK = 512  # rows that a program adds up; fixed, so that sums have one order on every GPU
MAX_DIM = 1024  # channels that few clusters may have


class Parts(NamedTuple):
    """What chunks of up to :data:`CHUNK` rows add up to; where a set is not active, anything."""

    sums: Tensor  # (G, R, chunks, K, D)
    counts: Tensor  # (G, R, chunks, K)
    total: Tensor  # (G, R, chunks), sum of squares


class TritonLloyd:
    """Passes over rows in float32, bfloat16 or float16; see :class:`~brpg_lib.kernels.lloyd.interface.Lloyd`."""

    def __init__(self, rows: Tensor, num_rows: Tensor, shift: Tensor, index: Tensor | None = None) -> None:
        if rows.stride(2) != 1:
            rows = rows.contiguous()
        self.rows, self.num_rows, self.shift, self.index = rows, num_rows, shift.contiguous(), index
        self.length = rows.shape[1] if index is None else index.shape[1]
        self.chunks = triton.cdiv(self.length, CHUNK)

    def __call__(self, centers: Tensor, allowed: Tensor, active: Tensor, weights: Tensor | None = None) -> Pass:
        """See :meth:`brpg_lib.kernels.lloyd.interface.Lloyd.__call__`."""
        flags = allowed.contiguous().view(torch.uint8), active.contiguous().view(torch.uint8)
        parts = self.parts(centers.contiguous(), *flags, weights)
        sums, counts = parts.sums.sum(2), parts.counts.sum(2)
        if weights is not None:  # the sum of squares is not weighted
            return Pass(sums, counts, torch.zeros_like(parts.total[..., 0]))
        return Pass(sums, counts, inertia_about_means(parts.total.double().sum(2), sums, counts))

    def parts(self, centers: Tensor, allowed: Tensor, active: Tensor, weights: Tensor | None = None) -> Parts:
        """The same for each chunk of rows, from contiguous centers and flags of uint8."""
        groups, sets, clusters, dim = centers.shape
        chunks = self.chunks
        sums = centers.new_empty(groups, sets, chunks, clusters, dim)
        counts = centers.new_empty(groups, sets, chunks, clusters)
        total = centers.new_empty(groups, sets, chunks)
        kernel, sizes = kernel_for(dim, clusters)
        # Launched on the device of the rows, which need not be the current one.
        with torch.cuda.device_of(self.rows):
            kernel[(groups * sets, chunks)](
                self.rows,
                self.num_rows,
                self.shift,
                centers if self.index is None else self.index,
                centers,
                allowed,
                active,
                centers if weights is None else weights,
                sums,
                counts,
                total,
                sets,
                chunks,
                self.length,
                self.rows.stride(0),
                self.rows.stride(1),
                0 if weights is None else weights.stride(0),
                DIM=dim,
                CLUSTERS=clusters,
                INDEXED=self.index is not None,
                WEIGHTED=weights is not None,
                CHUNK=CHUNK,
                **sizes,
            )
        return Parts(sums, counts, total)


def kernel_for(dim: int, clusters: int) -> tuple[Any, dict[str, int]]:
    """The kernel for rows of ``dim`` channels and so many clusters, and the sizes that it takes."""
    if clusters <= triton_few.MAX_CLUSTERS:
        return triton_few.few_clusters, triton_few.tile(dim, clusters)
    return triton_many.many_clusters, triton_many.tile(dim, clusters)


def fits(dim: int, clusters: int, device: torch.device) -> bool:
    """Whether there is a kernel for rows of ``dim`` channels and so many clusters that runs on a device."""
    if clusters <= triton_few.MAX_CLUSTERS:
        return dim <= MAX_DIM
    if clusters > triton_many.MAX_CLUSTERS or dim > triton_many.MAX_DIM:
        return False
    if device.type != "cuda":  # interpreted
        return True
    properties = torch.cuda.get_device_properties(device)
    shared = getattr(properties, "shared_memory_per_block_optin", 0)
    enough = shared >= triton_many.NEEDED_SHARED
    return (properties.major, properties.minor) >= triton_many.NEEDED_CAPABILITY and enough
