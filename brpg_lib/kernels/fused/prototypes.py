"""What happens to prototypes after a step, and what they look like, in one launch each."""

import torch
import triton
import triton.language as tl
from torch import Tensor


def tile(dim: int, slots: int) -> dict[str, int]:
    """The prototypes of a class, and their channels."""
    return {"SLOTS": slots, "DEEP": triton.next_power_of_2(slots), "WIDTH": triton.next_power_of_2(dim)}


def directions(prototypes: Tensor) -> Tensor:
    """Each prototype at length 1, ``(M, D)``; as ``torch.nn.functional.normalize``."""
    flat = prototypes.flatten(0, -2)
    found = torch.empty_like(flat)
    number, dim = flat.shape
    with torch.cuda.device_of(flat):
        _normalize[(number,)](flat, found, dim, WIDTH=triton.next_power_of_2(dim))
    return found


def move(prototypes: Tensor, mask: Tensor, idle: Tensor, pull: Tensor, hits: Tensor, momentum: float) -> Tensor:
    """Move the prototypes, and count since when each was not the nearest one to any point; both in place.

    As :meth:`brpg_lib.PrototypeBank.move` and :func:`brpg_lib.learn.diagnostics.used`.

    Args:
        prototypes: ``(C, 2, K, D)`` float32, changed.
        mask: ``(C, 2, K)`` bool.
        idle: ``(C, 2, K)`` int64, changed.
        pull: ``(M, D + 1)`` float32, over all ranks.
        hits: ``(M,)`` float32, over all ranks.
        momentum: Share of a prototype that stays.

    Returns:
        ``()`` float32, share of the prototypes with points among those of classes with points.
    """
    classes, dim, slots = len(mask), prototypes.shape[3], mask[0].numel()
    parts = torch.empty(classes, 2, dtype=torch.float32, device=mask.device)
    with torch.cuda.device_of(mask):
        _move[(classes,)](
            prototypes, mask.view(torch.uint8), idle, pull, hits, parts, momentum, dim,
            **tile(dim, slots),
        )  # fmt: skip
    hit, expected = parts.sum(0)
    used: Tensor = hit / expected.clamp(min=1)
    return used


def health(prototypes: Tensor, mask: Tensor, idle: Tensor, collapsed: float, dead_after: int) -> Tensor:
    """What :func:`brpg_lib.learn.diagnostics.health` tells: ``(4,)`` float32.

    Args:
        prototypes: ``(C, 2, K, D)`` float32.
        mask: ``(C, 2, K)`` bool.
        idle: ``(C, 2, K)`` int64.
        collapsed: Cosine similarity from which two prototypes count as one.
        dead_after: Idle steps from which a prototype counts as dead.

    Returns:
        Number of prototypes, mean similarity of pairs of a class, collapsed ones, dead ones.
    """
    classes, dim, slots = len(mask), prototypes.shape[3], mask[0].numel()
    parts = torch.empty(classes, 5, dtype=torch.float32, device=mask.device)
    with torch.cuda.device_of(mask):
        _health[(classes,)](
            prototypes, mask.view(torch.uint8), idle, parts, collapsed, dead_after, dim,
            **tile(dim, slots),
        )  # fmt: skip
    number, similarity, pairs, fallen, dead = parts.sum(0)
    return torch.stack((number, similarity / pairs.clamp(min=1), fallen, dead))


@triton.jit  # type: ignore[untyped-decorator]
def _normalize(rows, found, dim, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    place = tl.program_id(0).to(tl.int64) * dim + tl.arange(0, WIDTH)
    inside = tl.arange(0, WIDTH) < dim
    row = tl.load(rows + place, mask=inside, other=0.0)
    length = tl.sqrt(tl.sum(row * row, axis=0))
    tl.store(found + place, row / tl.maximum(length, 1e-12), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _class(  # type: ignore[no-untyped-def]
    mask, idle, own, channel, dim, SLOTS: tl.constexpr, DEEP: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """The rows of one class: which there are, also by channel, which hold a prototype, and since when each is idle."""
    slot = tl.arange(0, DEEP)
    real, row = slot < SLOTS, own * SLOTS + slot
    exists = tl.load(mask + row, mask=real, other=0) != 0
    waited = tl.load(idle + row, mask=real, other=0)
    return row, real, real[:, None] & (channel < dim)[None, :], exists, waited


@triton.jit  # type: ignore[untyped-decorator]
def _move(  # type: ignore[no-untyped-def]
    prototypes, mask, idle, pull, hits, parts, momentum, dim,
    SLOTS: tl.constexpr, DEEP: tl.constexpr, WIDTH: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """The prototypes of one class."""
    own, channel = tl.program_id(0), tl.arange(0, WIDTH)
    row, real, inside, exists, waited = _class(mask, idle, own, channel, dim, SLOTS, DEEP)
    hit = (tl.load(hits + row, mask=real, other=0.0) > 0) & exists
    some = tl.max(hit.to(tl.int32), axis=0)
    expected = exists & (some > 0)
    tl.store(idle + row, tl.where(hit, 0, waited + expected.to(tl.int64)), mask=real)
    tl.store(parts + 2 * own, tl.sum(hit.to(tl.float32), axis=0))
    tl.store(parts + 2 * own + 1, tl.sum(expected.to(tl.float32), axis=0))

    weight = tl.load(pull + row * (dim + 1) + dim, mask=real, other=0.0)
    total = tl.load(pull + row[:, None] * (dim + 1) + channel[None, :], mask=inside, other=0.0)
    place = prototypes + row[:, None] * dim + channel[None, :]
    old = tl.load(place, mask=inside, other=0.0)
    new = momentum * old + (1 - momentum) * (total / tl.where(weight > 0, weight, 1.0)[:, None])
    tl.store(place, tl.where((weight > 0)[:, None], new, old), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _health(  # type: ignore[no-untyped-def]
    prototypes, mask, idle, parts, collapsed, dead_after, dim,
    SLOTS: tl.constexpr, DEEP: tl.constexpr, WIDTH: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """The prototypes of one class: each beside those before it."""
    own, channel = tl.program_id(0), tl.arange(0, WIDTH)
    row, _real, inside, exists, waited = _class(mask, idle, own, channel, dim, SLOTS, DEEP)
    slot = tl.arange(0, DEEP)
    vector = tl.load(prototypes + row[:, None] * dim + channel[None, :], mask=inside, other=0.0)
    length = tl.sqrt(tl.sum(vector * vector, axis=1))
    vector = vector / tl.maximum(length, 1e-12)[:, None]
    similarity = tl.zeros((DEEP,), tl.float32)
    pairs = tl.zeros((DEEP,), tl.float32)
    fallen = tl.zeros((DEEP,), tl.int32)
    for before in range(SLOTS):
        one = tl.sum(tl.where((slot == before)[:, None], vector, 0.0), axis=0)
        there = tl.sum(tl.where((slot == before) & exists, 1, 0), axis=0) > 0
        pair = exists & (slot > before) & there
        alike = tl.sum(vector * one[None, :], axis=1)
        similarity += tl.where(pair, alike, 0.0)
        pairs += tl.where(pair, 1.0, 0.0)
        fallen = tl.maximum(fallen, tl.where(pair & (alike > collapsed), 1, 0))
    out = parts + 5 * own
    tl.store(out, tl.sum(exists.to(tl.float32), axis=0))
    tl.store(out + 1, tl.sum(similarity, axis=0))
    tl.store(out + 2, tl.sum(pairs, axis=0))
    tl.store(out + 3, tl.sum(fallen.to(tl.float32), axis=0))
    tl.store(out + 4, tl.sum((exists & (waited >= dead_after)).to(tl.float32), axis=0))
