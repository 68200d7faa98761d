"""The k-means pass on CUDA for up to four clusters: a row is held in registers while all centers look at it.

Only differences between centers are computed. With K clusters these are K - 1 products with a row, and K - 1 sums: what
the first cluster gets is what the others leave of all rows.
"""

import triton
import triton.language as tl

MAX_CLUSTERS = 4


def tile(dim: int, clusters: int) -> dict[str, int]:
    """Sizes that fit the registers: 64 numbers of the rows per lane, and up to 8 of each vector."""
    width = triton.next_power_of_2(dim)
    return {"HEIGHT": max(8, 2048 // width), "WIDTH": width, "num_warps": max(1, width // 256)}


@triton.jit  # type: ignore[untyped-decorator]
def few_clusters(  # type: ignore[no-untyped-def]
    rows, num_rows, shift, index, centers, allowed, active, weights, sums, counts, total, sets, chunks, length,
    group_stride, row_stride, weight_stride,
    DIM: tl.constexpr, CLUSTERS: tl.constexpr, INDEXED: tl.constexpr, WEIGHTED: tl.constexpr,  # noqa: N803
    CHUNK: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One chunk of rows against one set of centers: sums of up to CHUNK rows, HEIGHT rows at a time."""
    problem, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    group = problem // sets
    running = tl.load(active + problem) != 0
    start = chunk * CHUNK
    stop = tl.where(running, tl.minimum(tl.load(num_rows + group).to(tl.int32), start + CHUNK), start)

    column = tl.arange(0, WIDTH)
    within = column < DIM
    middle = tl.load(shift + group * DIM + column, mask=within, other=0.0)
    center = centers + problem * CLUSTERS * DIM + column
    exists = allowed + group * CLUSTERS
    # |row - c_k|^2 - |row - c_0|^2 = bias_k - row . toward_k. The compiler wants a name for each vector.
    c0 = tl.load(center, mask=within, other=0.0)
    every = tl.zeros((WIDTH,), dtype=tl.float32)
    squares = tl.zeros((WIDTH,), dtype=tl.float32)
    n0 = tl.zeros((HEIGHT,), dtype=tl.float32)
    if CLUSTERS > 1:
        c1 = tl.load(center + DIM, mask=within, other=0.0)
        bias1 = tl.where(tl.load(exists + 1) != 0, tl.sum(c1 * c1 - c0 * c0, axis=0), float("inf"))
        toward1 = 2.0 * (c1 - c0)
        added1 = tl.zeros((WIDTH,), dtype=tl.float32)
        n1 = tl.zeros((HEIGHT,), dtype=tl.float32)
    if CLUSTERS > 2:
        c2 = tl.load(center + 2 * DIM, mask=within, other=0.0)
        bias2 = tl.where(tl.load(exists + 2) != 0, tl.sum(c2 * c2 - c0 * c0, axis=0), float("inf"))
        toward2 = 2.0 * (c2 - c0)
        added2 = tl.zeros((WIDTH,), dtype=tl.float32)
        n2 = tl.zeros((HEIGHT,), dtype=tl.float32)
    if CLUSTERS > 3:
        c3 = tl.load(center + 3 * DIM, mask=within, other=0.0)
        bias3 = tl.where(tl.load(exists + 3) != 0, tl.sum(c3 * c3 - c0 * c0, axis=0), float("inf"))
        toward3 = 2.0 * (c3 - c0)
        added3 = tl.zeros((WIDTH,), dtype=tl.float32)
        n3 = tl.zeros((HEIGHT,), dtype=tl.float32)

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
        squares += tl.sum(row * row, axis=0)
        share = valid.to(tl.float32)
        if WEIGHTED:
            share = tl.load(weights + group * weight_stride + at, mask=valid, other=0.0)

        best = tl.zeros((HEIGHT,), dtype=tl.int32)
        nearest = tl.zeros((HEIGHT,), dtype=tl.float32)  # how much nearer than the first center
        if CLUSTERS > 1:
            further = bias1 - tl.sum(row * toward1[None, :], axis=1)
            best = tl.where(further < nearest, 1, best)
            nearest = tl.minimum(further, nearest)
        if CLUSTERS > 2:
            further = bias2 - tl.sum(row * toward2[None, :], axis=1)
            best = tl.where(further < nearest, 2, best)
            nearest = tl.minimum(further, nearest)
        if CLUSTERS > 3:
            further = bias3 - tl.sum(row * toward3[None, :], axis=1)
            best = tl.where(further < nearest, 3, best)

        if WEIGHTED:
            every += tl.sum(share[:, None] * row, axis=0)
        else:
            every += tl.sum(row, axis=0)
        n0 += tl.where(best == 0, share, 0.0)
        if CLUSTERS > 1:
            part = tl.where(best == 1, share, 0.0)
            added1 += tl.sum(part[:, None] * row, axis=0)
            n1 += part
        if CLUSTERS > 2:
            part = tl.where(best == 2, share, 0.0)
            added2 += tl.sum(part[:, None] * row, axis=0)
            n2 += part
        if CLUSTERS > 3:
            part = tl.where(best == 3, share, 0.0)
            added3 += tl.sum(part[:, None] * row, axis=0)
            n3 += part

    out = problem * chunks + chunk
    target = sums + out * CLUSTERS * DIM + column
    number = counts + out * CLUSTERS
    present = tl.load(exists) != 0  # where the first center does not exist, none does
    if CLUSTERS > 1:
        every -= added1
        tl.store(target + DIM, added1, mask=within)
        tl.store(number + 1, tl.sum(n1, axis=0))
    if CLUSTERS > 2:
        every -= added2
        tl.store(target + 2 * DIM, added2, mask=within)
        tl.store(number + 2, tl.sum(n2, axis=0))
    if CLUSTERS > 3:
        every -= added3
        tl.store(target + 3 * DIM, added3, mask=within)
        tl.store(number + 3, tl.sum(n3, axis=0))
    tl.store(target, tl.where(present, every, 0.0), mask=within)
    tl.store(number, tl.where(present, tl.sum(n0, axis=0), 0.0))
    tl.store(total + out, tl.sum(squares, axis=0))
