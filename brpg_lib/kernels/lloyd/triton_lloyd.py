"""The k-means pass on CUDA: assignment and sums fused, so that each row is read once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from brpg_lib.kernels.lloyd.interface import Pass, inertia_about_means

_CHUNK = 512  # rows that a program adds up; fixed, so that sums have one order on every GPU
_WARP_TILE = 2048  # elements that a warp holds, of the rows as of the sums: more would not fit its registers


class TritonLloyd:
    """Passes over rows in float32, bfloat16 or float16; see :class:`~brpg_lib.kernels.lloyd.interface.Lloyd`."""

    def __init__(self, rows: Tensor, num_rows: Tensor, shift: Tensor, index: Tensor | None = None) -> None:
        self.rows, self.num_rows, self.shift, self.index = rows, num_rows, shift.contiguous(), index
        self.length = rows.shape[1] if index is None else index.shape[1]

    def __call__(self, centers: Tensor, allowed: Tensor, active: Tensor, weights: Tensor | None = None) -> Pass:
        """See :meth:`brpg_lib.kernels.lloyd.interface.Lloyd.__call__`."""
        groups, sets, clusters, dim = centers.shape
        centers = centers.contiguous()
        chunks = triton.cdiv(self.length, _CHUNK)
        sums = centers.new_empty(groups, sets, chunks, clusters, dim)
        counts = centers.new_empty(groups, sets, chunks, clusters)
        total = centers.new_empty(groups, sets, chunks)
        width = triton.next_power_of_2(dim)
        slots = triton.next_power_of_2(clusters)
        warps = min(max(1, slots * width // _WARP_TILE), 8)  # with one, no sum needs shared memory or a barrier
        # Launched on the device of the rows, which need not be the current one.
        with torch.cuda.device_of(self.rows):
            _pass[(chunks, groups * sets)](
                self.rows,
                self.num_rows,
                self.shift,
                centers if self.index is None else self.index,
                centers,
                allowed.contiguous().view(torch.uint8),
                active.contiguous().view(torch.uint8),
                centers if weights is None else weights,
                sums,
                counts,
                total,
                sets,
                chunks,
                self.length,
                dim,
                self.rows.stride(0),
                self.rows.stride(1),
                0 if weights is None else weights.stride(0),
                CLUSTERS=clusters,
                INDEXED=self.index is not None,
                WEIGHTED=weights is not None,
                CHUNK=_CHUNK,
                HEIGHT=warps * _WARP_TILE // width,
                WIDTH=width,
                SLOTS=slots,
                num_warps=warps,
            )
        sums, counts = sums.sum(2), counts.sum(2)
        if weights is not None:  # the sum of squares is not weighted
            return Pass(sums, counts, torch.zeros_like(total[..., 0]))
        return Pass(sums, counts, inertia_about_means(total.double().sum(2), sums, counts))


@triton.jit  # type: ignore[untyped-decorator]
def _pass(  # type: ignore[no-untyped-def]
    rows, num_rows, shift, index, centers, allowed, active, weights, sums, counts, total, sets, chunks, length, dim,
    group_stride, row_stride, weight_stride,
    CLUSTERS: tl.constexpr, INDEXED: tl.constexpr, WEIGHTED: tl.constexpr, CHUNK: tl.constexpr,  # noqa: N803
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One chunk of rows against one set of centers: CLUSTERS sums of up to CHUNK rows, HEIGHT rows at a time."""
    chunk, problem = tl.program_id(0), tl.program_id(1).to(tl.int64)
    group = problem // sets
    running = tl.load(active + problem) != 0
    count = tl.load(num_rows + group).to(tl.int32)
    start = chunk * CHUNK
    stop = tl.where(running, tl.minimum(count, start + CHUNK), start)

    column = tl.arange(0, WIDTH)
    within = column < dim
    slot = tl.arange(0, SLOTS)
    middle = tl.load(shift + group * dim + column, mask=within, other=0.0)
    added = tl.zeros((SLOTS, WIDTH), dtype=tl.float32)
    number = tl.zeros((SLOTS,), dtype=tl.float32)
    squares = tl.zeros((HEIGHT,), dtype=tl.float32)

    for begin in range(start, stop, HEIGHT):
        place = begin + tl.arange(0, HEIGHT)
        valid = place < stop
        at = place.to(tl.int64)
        if INDEXED:
            at = tl.load(index + group * length + place, mask=valid, other=0)
        cell = rows + group * group_stride + at[:, None] * row_stride + column[None, :]
        inside = valid[:, None] & within[None, :]
        row = tl.load(cell, mask=inside, other=0.0).to(tl.float32) - middle[None, :]
        row = tl.where(inside, row, 0.0)
        squares += tl.sum(row * row, axis=1)

        # |row - center|^2 - |row|^2: the square of the row is the same for all centers.
        nearest = tl.full((HEIGHT,), float("inf"), dtype=tl.float32)
        best = tl.zeros((HEIGHT,), dtype=tl.int32)
        for k in range(CLUSTERS):
            center = tl.load(centers + (problem * CLUSTERS + k) * dim + column, mask=within, other=0.0)
            distance = tl.sum(center * center, axis=0) - 2.0 * tl.sum(center[None, :] * row, axis=1)
            exists = tl.load(allowed + group * CLUSTERS + k) != 0
            nearer = (distance < nearest) & exists
            best = tl.where(nearer, k, best)
            nearest = tl.where(nearer, distance, nearest)

        share = valid.to(tl.float32)
        if WEIGHTED:
            share = tl.load(weights + group * weight_stride + at, mask=valid, other=0.0)
        share = tl.where(nearest < float("inf"), share, 0.0)
        for k in range(CLUSTERS):
            part = tl.where(best == k, share, 0.0)
            added += tl.where(slot[:, None] == k, tl.sum(part[:, None] * row, axis=0)[None, :], 0.0)
            number += tl.where(slot == k, tl.sum(part, axis=0), 0.0)

    out = problem * chunks + chunk
    used = slot < CLUSTERS
    target = sums + (out * CLUSTERS + slot[:, None]) * dim + column[None, :]
    tl.store(target, added, mask=used[:, None] & within[None, :])
    tl.store(counts + out * CLUSTERS + slot, number, mask=used)
    tl.store(total + out, tl.sum(squares, axis=0))
