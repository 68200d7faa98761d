"""Lloyd iterations on CUDA: :func:`brpg_lib.kernels.kmeans.descent.descend` in four launches for each.

The host hears one iteration late whether any set is still moving, so that the device never waits for it. What is
launched in vain does nothing: its programs see that no set is active.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from brpg_lib.kernels.kmeans.descent import DECAY, LOOKED_AT, MAX_RATE, Descent, Rows
from brpg_lib.kernels.lloyd import LloydFactory
from brpg_lib.kernels.lloyd.triton_lloyd import TritonLloyd
from brpg_lib.late import LateCopy

TILE, CHUNKS = 4096, 64
"""Numbers that a program holds; of each set, numbers of how many chunks of rows."""


def tile(dim: int) -> dict[str, int]:
    """Sizes that fit the registers."""
    width = triton.next_power_of_2(dim)
    return {"HEIGHT": min(LOOKED_AT, TILE // width), "WIDTH": width}


def descend(
    create: LloydFactory,
    rows: Rows,
    found: Descent,
    allowed: Tensor,
    max_iterations: int,
    tolerance: Tensor,
    race: bool = False,
) -> Descent:
    """See :func:`brpg_lib.kernels.kmeans.descent.descend`, which this equals but for rounding."""
    lloyd = create(*rows)
    assert isinstance(lloyd, TritonLloyd)
    groups, sets, clusters, dim = found.centers.shape
    device = found.centers.device
    state = Descent(
        found.centers.clone(memory_format=torch.contiguous_format),
        found.counts.clone(memory_format=torch.contiguous_format),
        torch.where(found.active, found.inertia, torch.inf),
        found.rate.clone(memory_format=torch.contiguous_format),
        found.active.to(torch.uint8, memory_format=torch.contiguous_format),
    )
    exists = allowed.contiguous().view(torch.uint8)
    gain, needy = torch.empty_like(state.inertia), torch.empty_like(state.active)
    saved, between = (torch.empty_like(state.counts, dtype=dtype) for dtype in (torch.float32, torch.float64))
    moving = torch.zeros(max_iterations, dtype=torch.int32, device=device)
    limits = tolerance.float().contiguous()
    chunks, sizes = lloyd.chunks, tile(dim)
    heard: list[LateCopy] = []
    for iteration in range(max_iterations):
        parts = lloyd.parts(state.centers, exists, state.active)
        with torch.cuda.device_of(rows.values):
            _means[(groups * sets * clusters,)](
                parts.sums, parts.counts, state.centers, state.counts, saved, between, state.active, chunks, clusters,
                DIM=dim, **sizes,
            )  # fmt: skip
            _settle[(groups,)](
                parts.total, saved, between, exists, *state[1:5], gain, limits, needy, moving[iteration:],
                sets, clusters, chunks,
                FIRST=iteration == 0, RACE=race, MAX_RATE=MAX_RATE, DECAY=DECAY, CHUNKS=CHUNKS,
                SETS=triton.next_power_of_2(sets), SLOTS=triton.next_power_of_2(clusters),
            )  # fmt: skip
            _relocate[(groups * sets,)](
                lloyd.rows, lloyd.num_rows, lloyd.shift, state.centers if lloyd.index is None else lloyd.index,
                state.centers, exists, state.counts, needy, state.active, moving[iteration:], sets, clusters,
                lloyd.length, *lloyd.rows.stride()[:2],
                INDEXED=lloyd.index is not None, LOOKED_AT=LOOKED_AT, DIM=dim,
                SLOTS=triton.next_power_of_2(clusters), **sizes,
            )  # fmt: skip
        heard.append(LateCopy(moving[iteration]))
        if iteration > 0 and int(heard[iteration - 1].value) == 0:
            return state._replace(active=found.active, iterations=iteration)
    return state._replace(active=found.active, iterations=max_iterations)


@triton.jit  # type: ignore[untyped-decorator]
def _means(  # type: ignore[no-untyped-def]
    sums, counts, centers, number, saved, between, active, chunks, clusters,
    DIM: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One center: the mean of its rows, how many these are, and what moving there saves."""
    slot = tl.program_id(0).to(tl.int64)
    problem, k = slot // clusters, slot % clusters
    there = tl.load(active + problem) != 0
    column, height = tl.arange(0, WIDTH), tl.arange(0, HEIGHT)
    within = column < DIM
    added, rows = tl.zeros((WIDTH,), tl.float32), tl.zeros((HEIGHT,), tl.float32)
    for start in range(0, tl.where(there, chunks, 0), HEIGHT):
        part = (problem * chunks + start + height) * clusters + k
        inside = start + height < chunks
        some = tl.load(sums + part[:, None] * DIM + column[None, :], mask=inside[:, None] & within[None, :], other=0.0)
        added += tl.sum(some, axis=0)
        rows += tl.load(counts + part, mask=inside, other=0.0)
    total = tl.sum(rows, axis=0)
    most = tl.maximum(total, 1.0)
    mean = added / most
    own = tl.load(centers + slot * DIM + column, mask=within, other=0.0)
    away = mean - own
    wide, some = added.to(tl.float64), most.to(tl.float64)
    share = (1.0 / most).to(tl.float64)
    share = share * (2.0 - some * share)  # one over the rows in float64, without a division, which is a call there
    tl.store(saved + slot, total * tl.sum(away * away, axis=0), mask=there)
    tl.store(between + slot, tl.sum(wide * wide, axis=0) * share, mask=there)
    tl.store(number + slot, total, mask=there)
    tl.store(centers + slot * DIM + column, mean, mask=column < tl.where(there & (total > 0), DIM, 0))


@triton.jit  # type: ignore[untyped-decorator]
def _settle(  # type: ignore[no-untyped-def]
    totals, saved, between, exists, number, inertia, rate, active, gain, limits, needy, moving, sets, clusters, chunks,
    FIRST: tl.constexpr, RACE: tl.constexpr, MAX_RATE: tl.constexpr, DECAY: tl.constexpr, CHUNKS: tl.constexpr,  # noqa: N803
    SETS: tl.constexpr, SLOTS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One group: which of its sets go on, and which have a center without rows."""
    group = tl.program_id(0).to(tl.int64)
    own, slot, piece = tl.arange(0, SETS), tl.arange(0, SLOTS), tl.arange(0, CHUNKS)
    inside, problem = own < sets, group * sets + own
    runs = tl.load(active + problem, mask=inside, other=0) != 0
    each = runs[:, None] & (slot < clusters)[None, :]
    place = problem[:, None] * clusters + slot[None, :]
    total = tl.zeros((SETS,), tl.float64)
    for start in range(0, chunks, CHUNKS):
        there = runs[:, None] & (start + piece < chunks)[None, :]
        some = tl.load(totals + problem[:, None] * chunks + start + piece[None, :], mask=there, other=0.0)
        total += tl.sum(some.to(tl.float64), axis=1)
    total -= tl.sum(tl.load(between + place, mask=each, other=0.0), axis=1)
    now = tl.maximum(total, 0.0).to(tl.float32)
    less = tl.sum(tl.load(saved + place, mask=each, other=0.0), axis=1)

    pace = tl.load(rate + problem, mask=inside, other=0.0)
    if not FIRST:
        shrunk = tl.minimum(less / tl.maximum(tl.load(gain + problem, mask=inside, other=1.0), 1e-30), MAX_RATE)
        pace = tl.where(runs, tl.maximum(shrunk, DECAY * pace), pace)
        tl.store(rate + problem, pace, mask=inside)
    tl.store(gain + problem, less, mask=inside & runs)
    best = tl.where(runs, now, tl.load(inertia + problem, mask=inside, other=float("inf")))
    tl.store(inertia + problem, best, mask=inside)
    to_come = less * pace / (1.0 - pace)
    goes_on = runs & (to_come > tl.load(limits + group) * now)
    if RACE:
        goes_on = goes_on & (best - less - to_come <= tl.min(best, axis=0))
    known = tl.load(exists + group * clusters + slot, mask=slot < clusters, other=0) != 0
    rows = tl.load(number + place, mask=each, other=1.0)
    empty = tl.sum((each & known[None, :] & (rows == 0)).to(tl.int32), axis=1)
    tl.store(needy + problem, (empty > 0).to(tl.uint8), mask=inside)
    tl.store(active + problem, goes_on.to(tl.uint8), mask=inside)
    tl.atomic_max(moving, tl.max(goes_on.to(tl.int32), axis=0))


@triton.jit  # type: ignore[untyped-decorator]
def _relocate(  # type: ignore[no-untyped-def]
    rows, num_rows, shift, index, centers, exists, number, needy, active, moving, sets, clusters, length,
    group_stride, row_stride,
    INDEXED: tl.constexpr, LOOKED_AT: tl.constexpr, DIM: tl.constexpr, HEIGHT: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr, SLOTS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One set: the first center without rows moves to a row far from the others, where there is one elsewhere."""
    problem = tl.program_id(0).to(tl.int64)
    group = problem // sets
    needs = tl.load(needy + problem) != 0
    column, slot, height = tl.arange(0, WIDTH), tl.arange(0, SLOTS), tl.arange(0, HEIGHT)
    within = column < DIM
    known = tl.load(exists + group * clusters + slot, mask=slot < clusters, other=0) != 0
    empty = known & (tl.load(number + problem * clusters + slot, mask=slot < clusters, other=1.0) == 0)
    first = tl.min(tl.where(empty, slot, SLOTS), axis=0)
    middle = tl.load(shift + group * DIM + column, mask=within, other=0.0)
    stop = tl.load(num_rows + group)
    farthest, chosen = tl.full((), -1.0, tl.float32), tl.full((), 0, tl.int64)
    for start in range(0, tl.where(needs, LOOKED_AT, 0), HEIGHT):
        at = (start + height).to(tl.int64) * stop // LOOKED_AT
        if INDEXED:
            at = tl.load(index + group * length + at)
        cell = rows + group * group_stride + at[:, None] * row_stride + column[None, :]
        row = tl.load(cell, mask=within[None, :], other=0.0).to(tl.float32) - middle[None, :]
        nearest = tl.full((HEIGHT,), float("inf"), tl.float32)
        for k in range(0, clusters):
            full = tl.load(number + problem * clusters + k) > 0
            other = tl.load(centers + (problem * clusters + k) * DIM + column, mask=within, other=0.0)
            away = tl.where(within[None, :], row - other[None, :], 0.0)
            used = full & (tl.load(exists + group * clusters + k) != 0)
            nearest = tl.minimum(nearest, tl.where(used, tl.sum(away * away, axis=1), float("inf")))
        far = tl.max(nearest, axis=0)
        where = tl.sum(tl.where(height == tl.argmax(nearest, axis=0), at, 0), axis=0)
        chosen = tl.where(far > farthest, where, chosen)
        farthest = tl.maximum(far, farthest)
    moves = needs & (farthest > 0)
    width = tl.where(moves, DIM, 0)
    cell = rows + group * group_stride + chosen * row_stride + column
    row = tl.load(cell, mask=column < width, other=0.0).to(tl.float32) - middle
    tl.store(centers + (problem * clusters + first) * DIM + column, row, mask=column < width)
    tl.store(active + problem, 1, mask=moves)
    tl.atomic_max(moving, 1, mask=moves)
