"""Where centers start, on CUDA: the functions of :mod:`brpg_lib.kernels.kmeans.seeding`, each in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from brpg_lib.kernels.fused.scores import fold, uniform
from brpg_lib.kernels.kmeans.seeding import CANDIDATES

CHANNELS = 16
"""Of which distances are added up at a time."""


def numbers(count: int, key: Tensor, stream: int) -> Tensor:
    """See :func:`brpg_lib.kernels.kmeans.seeding.numbers`, which this equals bit for bit."""
    found = torch.empty(len(key), count, dtype=torch.float32, device=key.device)
    with torch.cuda.device_of(key):
        _numbers[(len(key),)](key, found, stream, count, BLOCK=triton.next_power_of_2(count))
    return found


def seed(rows: Tensor, num_rows: Tensor, allowed: Tensor, restarts: int, key: Tensor, stream: int) -> Tensor:
    """See :func:`brpg_lib.kernels.kmeans.seeding.seed`, which this equals but for rounding."""
    (groups, length, dim), clusters = rows.shape, allowed.shape[1]
    centers = torch.empty(groups, restarts, clusters, dim, dtype=torch.float32, device=rows.device)
    with torch.cuda.device_of(rows):
        _seed[(groups * restarts,)](
            rows.contiguous(), num_rows, key, centers, stream, length, restarts, clusters,
            **tile(length, dim),
        )  # fmt: skip
    return centers


def tile(length: int, dim: int) -> dict[str, int]:
    """Sizes of what a program holds."""
    sizes = {"DIM": dim, "CANDIDATES": min(CANDIDATES, length), "CHANNELS": CHANNELS}
    return sizes | {"LENGTH": triton.next_power_of_2(length), "WIDTH": triton.next_power_of_2(dim)}


@triton.jit  # type: ignore[untyped-decorator]
def _numbers(keys, found, stream, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Those of one key."""
    group, place = tl.program_id(0), tl.arange(0, BLOCK)
    tl.store(found + group * count + place, uniform(place, fold(tl.load(keys + group), stream)), mask=place < count)


@triton.jit
def _race(nearest, key, start, place):  # type: ignore[no-untyped-def]
    """An exponential race draws rows in proportion to their weight; zero-weight rows never win."""
    noise = tl.log(uniform(start + place, key))
    return tl.where(nearest > 0, noise / tl.maximum(nearest, 1e-30), float("-inf"))


@triton.jit  # type: ignore[untyped-decorator]
def _distances(rows, index, valid, place, DIM: tl.constexpr, LENGTH: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Squared distance of each row to the one at ``index``."""
    found = tl.zeros((LENGTH,), tl.float32)
    for start in range(0, DIM, CHANNELS):
        column = start + tl.arange(0, CHANNELS)
        within = column < DIM
        own = tl.load(rows + index * DIM + column, mask=within, other=0.0)
        row = tl.load(rows + place[:, None] * DIM + column[None, :], mask=valid[:, None] & within[None, :], other=0.0)
        away = tl.where(valid[:, None], row - own[None, :], 0.0)
        found += tl.sum(away * away, axis=1)
    return found


@triton.jit  # type: ignore[untyped-decorator]
def _seed(  # type: ignore[no-untyped-def]
    rows, num_rows, keys, centers, stream, length, restarts, clusters,
    DIM: tl.constexpr, CANDIDATES: tl.constexpr, LENGTH: tl.constexpr, CHANNELS: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """All centers of one seeding of one group."""
    problem = tl.program_id(0).to(tl.int64)
    group, restart = problem // restarts, (problem % restarts).to(tl.int32)
    place, column = tl.arange(0, LENGTH), tl.arange(0, WIDTH)
    own = rows + group * length * DIM
    valid = (place < tl.load(num_rows + group)) & (place < length)
    key = fold(tl.load(keys + group), stream)
    nearest = tl.where(valid, 1.0, 0.0)  # the first draw is uniform
    for cluster in range(0, clusters):
        score = _race(nearest, fold(key, cluster), restart * length, place)
        score = tl.where(place < length, score, float("-inf"))
        least, chosen, best = float("inf"), 0, nearest
        for _ in range(0, tl.where(cluster == 0, 1, CANDIDATES)):
            index = tl.argmax(score, axis=0)
            score = tl.where(place == index, float("-inf"), score)
            distance = _distances(own, index, valid, place, DIM, LENGTH, CHANNELS)
            if cluster > 0:
                distance = tl.minimum(distance, nearest)
            total = tl.sum(distance, axis=0)
            better = total < least
            chosen = tl.where(better, index, chosen)
            best = tl.where(better, distance, best)
            least = tl.minimum(total, least)
        nearest = best
        center = tl.load(own + chosen * DIM + column, mask=column < DIM, other=0.0)
        tl.store(centers + (problem * clusters + cluster) * DIM + column, center, mask=column < DIM)
