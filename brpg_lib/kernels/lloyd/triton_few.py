"""The k-means pass on CUDA for up to four clusters: a row is held in registers while all centers look at it.

Only differences between centers are computed. With K clusters these are K - 1 products with a row, and K - 1 sums: what
the first cluster gets is what the others leave of all rows.
"""

import triton
import triton.language as tl

from brpg_lib.kernels.lloyd.triton_rows import load_rows, rows_of

MAX_CLUSTERS = 4


def tile(dim: int, clusters: int) -> dict[str, int]:
    """Sizes that fit the registers: 64 numbers of the rows per lane, and up to 8 of each vector."""
    width = triton.next_power_of_2(dim)
    return {"HEIGHT": max(8, 2048 // width), "WIDTH": width, "num_warps": max(1, width // 256)}


@triton.jit  # type: ignore[untyped-decorator]
def _direction(center, exists, first, within, k, DIM: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Of center k and the ``first`` one: |row - c_k|^2 - |row - c_0|^2 = bias - row . toward."""
    own = tl.load(center + k * DIM, mask=within, other=0.0)
    bias = tl.where(tl.load(exists + k) != 0, tl.sum(own * own - first * first, axis=0), float("inf"))
    return 2.0 * (own - first), bias


@triton.jit
def _closer(row, toward, bias, best, nearest, k):  # type: ignore[no-untyped-def]
    """Take center k into account: the best one, and how much nearer it is than the first."""
    further = bias - tl.sum(row * toward[None, :], axis=1)
    return tl.where(further < nearest, k, best), tl.minimum(further, nearest)


@triton.jit
def _add(row, share, best, k, added, number):  # type: ignore[no-untyped-def]
    """The sum and number of the rows of center k, with those of these rows."""
    part = tl.where(best == k, share, 0.0)
    return added + tl.sum(part[:, None] * row, axis=0), number + part


@triton.jit  # type: ignore[untyped-decorator]
def _store(target, number, added, part, within, k, DIM: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Write the sum and the number of the rows of center k."""
    tl.store(target + k * DIM, added, mask=within)
    tl.store(number + k, tl.sum(part, axis=0))
    return added


@triton.jit  # type: ignore[untyped-decorator]
def few_clusters(  # type: ignore[no-untyped-def]
    rows, num_rows, shift, index, centers, allowed, active, weights, sums, counts, total, sets, chunks, length,
    group_stride, row_stride, weight_stride,
    DIM: tl.constexpr, CLUSTERS: tl.constexpr, INDEXED: tl.constexpr, WEIGHTED: tl.constexpr,  # noqa: N803
    CHUNK: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One chunk of rows against one set of centers: sums of up to CHUNK rows, HEIGHT rows at a time."""
    problem, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    group, start, stop = rows_of(num_rows, active, problem, chunk, sets, CHUNK)
    column = tl.arange(0, WIDTH)
    within = column < DIM
    middle = tl.load(shift + group * DIM + column, mask=within, other=0.0)
    center, exists = centers + problem * CLUSTERS * DIM + column, allowed + group * CLUSTERS
    first = tl.load(center, mask=within, other=0.0)
    # The compiler wants a name for each vector: zeros where there is no such center.
    every, squares, n0 = tl.zeros((WIDTH,), tl.float32), tl.zeros((WIDTH,), tl.float32), tl.zeros((HEIGHT,), tl.float32)
    if CLUSTERS > 1:
        toward1, bias1 = _direction(center, exists, first, within, 1, DIM)
        added1, n1 = tl.zeros((WIDTH,), tl.float32), tl.zeros((HEIGHT,), tl.float32)
    if CLUSTERS > 2:
        toward2, bias2 = _direction(center, exists, first, within, 2, DIM)
        added2, n2 = tl.zeros((WIDTH,), tl.float32), tl.zeros((HEIGHT,), tl.float32)
    if CLUSTERS > 3:
        toward3, bias3 = _direction(center, exists, first, within, 3, DIM)
        added3, n3 = tl.zeros((WIDTH,), tl.float32), tl.zeros((HEIGHT,), tl.float32)

    for begin in range(start, stop, HEIGHT):
        row, share = load_rows(
            rows, index, weights, middle, begin, stop, group, length, group_stride, row_stride, weight_stride,
            DIM, INDEXED, WEIGHTED, HEIGHT, WIDTH,
        )  # fmt: skip
        squares += tl.sum(row * row, axis=0)
        best, nearest = tl.zeros((HEIGHT,), tl.int32), tl.zeros((HEIGHT,), tl.float32)
        if CLUSTERS > 1:
            best, nearest = _closer(row, toward1, bias1, best, nearest, 1)
        if CLUSTERS > 2:
            best, nearest = _closer(row, toward2, bias2, best, nearest, 2)
        if CLUSTERS > 3:
            best, nearest = _closer(row, toward3, bias3, best, nearest, 3)
        every += tl.sum(share[:, None] * row, axis=0) if WEIGHTED else tl.sum(row, axis=0)
        n0 += tl.where(best == 0, share, 0.0)
        if CLUSTERS > 1:
            added1, n1 = _add(row, share, best, 1, added1, n1)
        if CLUSTERS > 2:
            added2, n2 = _add(row, share, best, 2, added2, n2)
        if CLUSTERS > 3:
            added3, n3 = _add(row, share, best, 3, added3, n3)

    out = problem * chunks + chunk
    target, number = sums + out * CLUSTERS * DIM + column, counts + out * CLUSTERS
    if CLUSTERS > 1:
        every -= _store(target, number, added1, n1, within, 1, DIM)
    if CLUSTERS > 2:
        every -= _store(target, number, added2, n2, within, 2, DIM)
    if CLUSTERS > 3:
        every -= _store(target, number, added3, n3, within, 3, DIM)
    there = tl.load(exists) != 0  # where the first center does not exist, none does
    _store(target, number, tl.where(there, every, 0.0), tl.where(there, n0, 0.0), within, 0, DIM)
    tl.store(total + out, tl.sum(squares, axis=0))
