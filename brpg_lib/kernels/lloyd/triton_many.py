"""The k-means pass on CUDA for five to sixteen clusters: matrix products on tensor cores.

These take numbers of eleven bits. A float32 number is the sum of two such, to within its own rounding, so that three
products give distances, and two give sums, as precise as float32 has them.
"""

import triton
import triton.language as tl

from brpg_lib.kernels.lloyd.triton_rows import load_rows, rows_of

MAX_CLUSTERS, MAX_DIM = 16, 256
NEEDED_CAPABILITY, NEEDED_SHARED = (8, 0), 112 * 1024
"""What the device must have; the shared memory (bytes) is that of the widest rows."""


def tile(dim: int, clusters: int) -> dict[str, int]:
    """Sizes that fit the registers, and the shapes that tensor cores take."""
    return {"HEIGHT": 16, "WIDTH": max(16, triton.next_power_of_2(dim)), "SLOTS": 16, "num_warps": 4, "num_stages": 1}


@triton.jit
def _halves(values):  # type: ignore[no-untyped-def]
    """Numbers of eleven bits, and what is left."""
    high = (values.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    return high, values - high


@triton.jit  # type: ignore[untyped-decorator]
def many_clusters(  # type: ignore[no-untyped-def]
    rows, num_rows, shift, index, centers, allowed, active, weights, sums, counts, total, sets, chunks, length,
    group_stride, row_stride, weight_stride,
    DIM: tl.constexpr, CLUSTERS: tl.constexpr, INDEXED: tl.constexpr, WEIGHTED: tl.constexpr,  # noqa: N803
    CHUNK: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One chunk of rows against one set of centers: sums of up to CHUNK rows, HEIGHT rows at a time."""
    problem, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    group, start, stop = rows_of(num_rows, active, problem, chunk, sets, CHUNK)
    column, slot = tl.arange(0, WIDTH), tl.arange(0, SLOTS)
    within, used = column < DIM, slot < CLUSTERS
    middle = tl.load(shift + group * DIM + column, mask=within, other=0.0)
    own = centers + (problem * CLUSTERS + slot[:, None]) * DIM + column[None, :]
    center = tl.load(own, mask=used[:, None] & within[None, :], other=0.0)
    exists = tl.load(allowed + group * CLUSTERS + slot, mask=used, other=0) != 0
    bias = tl.where(exists, tl.sum(center * center, axis=1), float("inf"))
    coarse, fine = _halves(center)
    coarse, fine = tl.trans(coarse), tl.trans(fine)
    added = tl.zeros((SLOTS, WIDTH), dtype=tl.float32)
    number = tl.zeros((SLOTS,), dtype=tl.float32)
    squares = tl.zeros((WIDTH,), dtype=tl.float32)

    for begin in range(start, stop, HEIGHT):
        row, share = load_rows(
            rows, index, weights, middle, begin, stop, group, length, group_stride, row_stride, weight_stride,
            DIM, INDEXED, WEIGHTED, HEIGHT, WIDTH,
        )  # fmt: skip
        squares += tl.sum(row * row, axis=0)
        high, low = _halves(row)
        product = tl.dot(high, coarse, input_precision="tf32")
        product = tl.dot(high, fine, product, input_precision="tf32")
        product = tl.dot(low, coarse, product, input_precision="tf32")
        best = tl.argmin(bias[None, :] - 2.0 * product, axis=1)
        member = (slot[:, None] == best[None, :]) & exists[:, None]
        if WEIGHTED:  # a weight is no number of eleven bits
            high, low = _halves(row * share[:, None])
        one = tl.where(member, 1.0, 0.0)
        added = tl.dot(one, high, added, input_precision="tf32")
        added = tl.dot(one, low, added, input_precision="tf32")
        number += tl.sum(tl.where(member, share[None, :], 0.0), axis=1)

    out = problem * chunks + chunk
    target = sums + (out * CLUSTERS + slot[:, None]) * DIM + column[None, :]
    tl.store(target, added, mask=used[:, None] & within[None, :])
    tl.store(counts + out * CLUSTERS + slot, number, mask=used)
    tl.store(total + out, tl.sum(squares, axis=0))
