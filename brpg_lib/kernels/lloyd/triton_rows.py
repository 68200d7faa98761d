"""Reading rows of a group, as all k-means kernels on CUDA do."""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def rows_of(num_rows, active, problem, chunk, sets, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """The group of a program's set of centers, and from where to where its rows are; none if the set is not active."""
    group, start = problem // sets, chunk * CHUNK
    stop = tl.minimum(tl.load(num_rows + group).to(tl.int32), start + CHUNK)
    return group, start, tl.where(tl.load(active + problem) != 0, stop, start)


@triton.jit  # type: ignore[untyped-decorator]
def load_rows(  # type: ignore[no-untyped-def]
    rows, index, weights, middle, begin, stop, group, length, group_stride, row_stride, weight_stride,
    DIM: tl.constexpr, INDEXED: tl.constexpr, WEIGHTED: tl.constexpr,  # noqa: N803
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """HEIGHT rows from ``begin`` on, less the ``middle``, zeros from ``stop`` on; and the weight of each."""
    place = begin + tl.arange(0, HEIGHT)
    column = tl.arange(0, WIDTH)
    valid = place < stop
    at = place.to(tl.int64)
    if INDEXED:
        at = tl.load(index + group * length + place, mask=valid, other=0)
    inside = valid[:, None] & (column < DIM)[None, :]
    cell = rows + group * group_stride + at[:, None] * row_stride + column[None, :]
    row = tl.load(cell, mask=inside, other=0.0).to(tl.float32) - middle[None, :]
    share = valid.to(tl.float32)
    if WEIGHTED:
        share = tl.load(weights + group * weight_stride + at, mask=valid, other=0.0)
    return tl.where(inside, row, 0.0), share
