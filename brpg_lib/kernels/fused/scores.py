"""Random numbers for the pixels with a confident pseudo label, in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


def scores(labels: Tensor, confidence: Tensor, threshold: Tensor, key: tuple[Tensor, int, int], classes: int) -> Tensor:
    """A uniform number for each candidate, and -1 for each other pixel.

    As ``torch.where(confident, uniform((N,), fold(*key)), -1.0)`` in :mod:`brpg_lib.learn.points`, bit for bit.

    Args:
        labels: ``(N,)`` integers.
        confidence: ``(N,)`` floating point.
        threshold: ``()`` or ``(C,)`` float32.
        key: ``()`` int64 iteration, seed and rank.
        classes: Number of classes C.

    Returns:
        ``(N,)`` float32.
    """
    found = torch.empty(len(labels), dtype=torch.float32, device=labels.device)
    now, seed, rank = key
    if not threshold.ndim:  # a single number takes the type of what it is compared with
        threshold = threshold.to(confidence.dtype)
    with torch.cuda.device_of(labels):
        _scores[(triton.cdiv(len(labels), BLOCK),)](
            labels, confidence, threshold, now, found, seed, rank, len(labels), classes,
            PER_CLASS=threshold.ndim > 0, BLOCK=BLOCK,
        )  # fmt: skip
    return found


def race(candidates: Tensor, number: Tensor, key: tuple[Tensor, int, int, int], cost: Tensor | None) -> Tensor:
    """A score for each candidate, of which the largest are a draw, and -inf for all others.

    As in :func:`brpg_lib.kernels.choosing.draw`.

    Args:
        candidates: ``(N,)`` bool.
        number: ``(N,)`` int64, how many candidates there are up to each.
        key: ``()`` int64 calls so far, seed, rank and group.
        cost: ``(N,)`` above 0, or None for 1.

    Returns:
        ``(N,)`` float32.
    """
    found = torch.empty(len(candidates), dtype=torch.float32, device=candidates.device)
    now, seed, rank, group = key
    weight = found if cost is None else cost.float()
    with torch.cuda.device_of(candidates):
        _race[(triton.cdiv(len(candidates), BLOCK),)](
            candidates.view(torch.uint8), number, weight, now, found, seed, rank, group, len(candidates),
            COSTLY=cost is not None, BLOCK=BLOCK,
        )  # fmt: skip
    return found


@triton.jit
def _mix(value):  # type: ignore[no-untyped-def]
    value = ((value ^ (value >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    value = ((value ^ (value >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return value ^ (value >> 16)


@triton.jit
def fold(key, value):  # type: ignore[no-untyped-def]
    """A new key, as :func:`brpg_lib.kernels.random.fold`."""
    return _mix((key * 31 + value + 0x9E3779B9) & 0xFFFFFFFF)


@triton.jit
def _mix_32(value):  # type: ignore[no-untyped-def]
    value = (value ^ ((value >> 16) & 0xFFFF)) * 0x45D9F3B
    value = (value ^ ((value >> 16) & 0xFFFF)) * 0x45D9F3B
    return value ^ ((value >> 16) & 0xFFFF)


@triton.jit
def uniform(index, key):  # type: ignore[no-untyped-def]
    """Numbers in (0, 1), as :func:`brpg_lib.kernels.random.uniform`."""
    value = _mix_32(index + key.to(tl.int32)) ^ fold(key, 1).to(tl.int32)
    value = (_mix_32(value) >> 9) & 0x7FFFFF
    return value.to(tl.float32) * 1.1920928955078125e-07 + 5.9604644775390625e-08


@triton.jit(do_not_specialize=["seed", "rank"])  # type: ignore[untyped-decorator]
def _scores(  # type: ignore[no-untyped-def]
    labels, confidence, threshold, now, found, seed, rank, length, classes,
    PER_CLASS: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """See :func:`scores`; the hash is that of :mod:`brpg_lib.kernels.random`."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < length
    label = tl.load(labels + place, mask=inside, other=-1).to(tl.int64)
    known = (label >= 0) & (label < classes)
    sure = tl.load(confidence + place, mask=inside, other=0.0)
    limit = tl.load(threshold + tl.where(known, label, 0) if PER_CLASS else threshold)
    confident = sure.to(tl.float32) >= limit.to(tl.float32)
    key = fold(fold(tl.load(now), seed.to(tl.int64)), rank.to(tl.int64))
    number = uniform(place, key)
    tl.store(found + place, tl.where(confident & known, number, -1.0), mask=inside)


@triton.jit(do_not_specialize=["seed", "rank", "group"])  # type: ignore[untyped-decorator]
def _race(  # type: ignore[no-untyped-def]
    candidates, number, cost, now, found, seed, rank, group, length, COSTLY: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """See :func:`race`."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < length
    candidate = tl.load(candidates + place, mask=inside, other=0) != 0
    index = tl.maximum(tl.load(number + place, mask=inside, other=1) - 1, 0).to(tl.int32)
    key = fold(fold(fold(tl.load(now), seed.to(tl.int64)), rank.to(tl.int64)), group.to(tl.int64))
    score = tl.log(uniform(index, key))
    if COSTLY:
        score = score * tl.load(cost + place, mask=inside, other=1.0)
    tl.store(found + place, tl.where(candidate, score, float("-inf")), mask=inside)
