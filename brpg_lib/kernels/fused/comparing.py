"""Points beside prototypes: losses, what moves the prototypes, and counts, in one launch after a matrix product."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from brpg_lib.kernels.fused.once import once
from brpg_lib.kernels.fused.reading import Read

POINTS = 32
"""That a program compares, one block after the other; it adds them up before it writes."""
TILE = 2048
"""Similarities that a program holds."""


class Options(NamedTuple):
    """Sizes and settings, see :class:`~brpg_lib.BRPGConfig`."""

    num_classes: int
    slots: int
    num_labeled: int
    temperature: float
    misclassified_weight: float


class Compared(NamedTuple):
    """Sums over points, as in :class:`~brpg_lib.ranks.exchange.StepSums`.

    Attributes:
        terms: ``(2, C, 2)`` float32, differentiable.
        pull: ``(M, D + 1)`` float32.
        hits: ``(M,)`` float32.
        counts: ``(2, 2)`` float32.
        dropped: ``()`` float32.
    """

    terms: Tensor
    pull: Tensor
    hits: Tensor
    counts: Tensor
    dropped: Tensor


def compare_points(read: Read, directions: Tensor, exists: Tensor, options: Options) -> Compared:
    """Compare points with prototypes.

    As :func:`brpg_lib.learn.step.measure` does.

    Args:
        read: The points.
        directions: ``(M, D)`` float32 of length 1; M is the classes times their slots.
        exists: ``(M,)`` bool.
        options: See there.
    """
    return Compared(*_Compare.apply(*read, directions, exists.view(torch.uint8), options))


class _Compare(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, inverse: Tensor, classes: Tensor, dropped: Tensor, directions: Tensor,
        exists: Tensor, options: Options,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        number, total = len(directions), len(features)
        cosine = features @ directions.T
        member = torch.empty_like(cosine)
        programs = max(1, triton.cdiv(total, POINTS))
        parts = torch.empty(
            programs, 4 * options.num_classes + 5 + 2 * number, dtype=torch.float32, device=features.device
        )
        tensors = (cosine, inverse, classes, dropped, exists, member, parts)
        _launch(features, _compare, programs, tensors, options, total)
        sums = parts.sum(0)
        terms, counts, lost, hits, weight = sums.split((4 * options.num_classes, 4, 1, number, number))
        pull = torch.cat((member.T @ features, weight[:, None]), dim=1)
        ctx.options = options
        ctx.save_for_backward(features, inverse, classes, directions, exists, cosine)
        found = terms.view(2, -1, 2).clone(), pull, hits, counts.view(2, 2), lost[0]
        ctx.mark_non_differentiable(*found[1:])
        return found

    @staticmethod
    @once
    def backward(ctx: Any, gradient: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        features, inverse, classes, directions, exists, cosine = ctx.saved_tensors
        toward, along = torch.empty_like(cosine), torch.empty_like(inverse)
        programs = max(1, triton.cdiv(len(features), POINTS))
        tensors = (cosine, inverse, classes, exists, gradient.contiguous(), toward, along)
        _launch(features, _differentiate, programs, tensors, ctx.options, len(features))
        # d(f.p / |f|) = (p - f (f.p) / |f|^2) / |f|
        with torch.autocast(features.device.type, enabled=False):  # whoever calls backward may be under it
            found = (toward @ directions).addcmul_(features, along[:, None], value=-1).mul_(inverse[:, None])
        return found, None, None, None, None, None, None


def _launch(
    features: Tensor, kernel: Any, programs: int, tensors: tuple[Tensor, ...], options: Options, total: int
) -> None:
    with torch.cuda.device_of(features):
        kernel[(programs,)](
            *tensors, total, options.num_labeled, 1.0 / options.temperature, options.misclassified_weight,
            **tile(options.num_classes, options.slots),
        )  # fmt: skip


def tile(num_classes: int, slots: int) -> dict[str, int]:
    """Sizes that fit the registers."""
    wide, deep = triton.next_power_of_2(num_classes), triton.next_power_of_2(slots)
    block = min(POINTS, max(1, TILE // (wide * deep)))
    sizes = {"CLASSES": num_classes, "SLOTS": slots, "WIDE": wide, "DEEP": deep, "BLOCK": block, "POINTS": POINTS}
    return sizes | {"num_warps": 4 if wide * deep <= TILE else 8}


@triton.jit  # type: ignore[untyped-decorator]
def _columns(  # type: ignore[no-untyped-def]
    CLASSES: tl.constexpr, SLOTS: tl.constexpr, WIDE: tl.constexpr, DEEP: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Where the prototypes of a program's ``(WIDE, DEEP)`` tile lie, and which of them there are."""
    place = tl.arange(0, WIDE * DEEP)
    return place // DEEP * SLOTS + place % DEEP, (place // DEEP < CLASSES) & (place % DEEP < SLOTS)


@triton.jit  # type: ignore[untyped-decorator]
def _judge(  # type: ignore[no-untyped-def]
    cosine, inverse, classes, exists, point, inside, sharpness,
    CLASSES: tl.constexpr, SLOTS: tl.constexpr, WIDE: tl.constexpr, DEEP: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Points beside classes.

    Similarity and nearest slot ``(BLOCK, WIDE)``; 1 / length, class, similarity to it, whether a point counts, whether
    its class is the most similar one ``(BLOCK,)``; logits ``(BLOCK, WIDE)``.
    """
    column, real = _columns(CLASSES, SLOTS, WIDE, DEEP)
    present = tl.load(exists + column, mask=real, other=0) != 0
    scale = tl.load(inverse + point, mask=inside, other=0.0)
    cell = cosine + point[:, None].to(tl.int64) * (CLASSES * SLOTS) + column[None, :]
    value = tl.load(cell, mask=inside[:, None] & real[None, :], other=0.0) * scale[:, None]
    value = tl.where((present & real)[None, :], value, float("-inf"))
    similarity, nearest = tl.max(tl.reshape(value, (BLOCK, WIDE, DEEP)), axis=2, return_indices=True)
    wide = tl.arange(0, WIDE)
    target = tl.load(classes + point, mask=inside, other=-1)
    likeness = tl.sum(tl.where(wide[None, :] == target[:, None], similarity, 0.0), axis=1)
    counted = (target >= 0) & (target < CLASSES) & (likeness > float("-inf"))
    right = tl.argmax(similarity, axis=1) == target
    logits = tl.where(counted[:, None], similarity, 0.0) * sharpness
    logits = tl.where((wide < CLASSES)[None, :], logits, float("-inf"))
    return similarity, nearest, scale, target, likeness, counted, right, logits


@triton.jit  # type: ignore[untyped-decorator]
def _compare(  # type: ignore[no-untyped-def]
    cosine, inverse, classes, dropped, exists, member, parts, total, num_labeled, sharpness, misclassified_weight,
    CLASSES: tl.constexpr, SLOTS: tl.constexpr, WIDE: tl.constexpr, DEEP: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr, POINTS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """POINTS points: each one's row of ``member``, and their sums as a row of ``parts``."""
    wide, deep, both = tl.arange(0, WIDE), tl.arange(0, WIDE * DEEP), tl.arange(0, 2)
    losses, weights = tl.zeros((2, WIDE), tl.float32), tl.zeros((2, WIDE), tl.float32)
    hits, pull = tl.zeros((WIDE * DEEP,), tl.float32), tl.zeros((WIDE * DEEP,), tl.float32)
    knowns, rights = tl.zeros((2, BLOCK), tl.float32), tl.zeros((2, BLOCK), tl.float32)
    lost = tl.zeros((BLOCK,), tl.float32)
    column, real = _columns(CLASSES, SLOTS, WIDE, DEEP)
    begin = tl.program_id(0) * POINTS
    for start in range(begin, begin + POINTS, BLOCK):
        point = start + tl.arange(0, BLOCK)
        inside = point < total
        _similarity, nearest, _scale, target, likeness, counted, right, logits = _judge(
            cosine, inverse, classes, exists, point, inside, sharpness, CLASSES, SLOTS, WIDE, DEEP, BLOCK
        )
        most = tl.max(logits, axis=1)
        loss = most + tl.log(tl.sum(tl.exp(logits - most[:, None]), axis=1)) - likeness * sharpness
        weight = tl.where(counted, tl.where(right, 1.0, misclassified_weight), 0.0)
        loss = tl.where(counted, loss, 0.0) * weight
        own = wide[None, :] == target[:, None]
        part = (point >= num_labeled)[None, :] == (both > 0)[:, None]  # labeled, unlabeled
        one = tl.where(own & counted[:, None], 1.0, 0.0)[None, :, :]
        losses += tl.sum(one * tl.where(part, loss[None, :], 0.0)[:, :, None], axis=1)
        weights += tl.sum(one * tl.where(part, weight[None, :], 0.0)[:, :, None], axis=1)
        known = part & ((target >= 0) & (target < CLASSES))[None, :]
        knowns += tl.where(known, 1.0, 0.0)
        rights += tl.where(known & right[None, :], 1.0, 0.0)
        lost += tl.load(dropped + point, mask=inside, other=0).to(tl.float32)
        slot = tl.sum(tl.where(own, nearest, 0), axis=1)
        mine = (deep[None, :] == (target * DEEP + slot)[:, None]) & counted[:, None]
        hits += tl.sum(tl.where(mine, 1.0, 0.0), axis=0)
        share = tl.where(mine, weight[:, None], 0.0)
        pull += tl.sum(share, axis=0)
        row = member + point[:, None].to(tl.int64) * (CLASSES * SLOTS) + column[None, :]
        tl.store(row, share, mask=inside[:, None] & real[None, :])
    out = parts + tl.program_id(0).to(tl.int64) * (4 * CLASSES + 5 + 2 * CLASSES * SLOTS)
    term = 2 * (both[:, None] * CLASSES + wide[None, :])
    there = (both >= 0)[:, None] & (wide < CLASSES)[None, :]
    tl.store(out + term, losses, mask=there)
    tl.store(out + term + 1, weights, mask=there)
    tl.store(out + 4 * CLASSES + 2 * both, tl.sum(knowns, axis=1))
    tl.store(out + 4 * CLASSES + 2 * both + 1, tl.sum(rights, axis=1))
    tl.store(out + 4 * CLASSES + 4, tl.sum(lost, axis=0))
    tl.store(out + 4 * CLASSES + 5 + column, hits, mask=real)
    tl.store(out + 4 * CLASSES + 5 + CLASSES * SLOTS + column, pull, mask=real)


@triton.jit  # type: ignore[untyped-decorator]
def _differentiate(  # type: ignore[no-untyped-def]
    cosine, inverse, classes, exists, gradient, toward, along, total, num_labeled, sharpness, misclassified_weight,
    CLASSES: tl.constexpr, SLOTS: tl.constexpr, WIDE: tl.constexpr, DEEP: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr, POINTS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """What the losses of POINTS points change per cosine, and in all along their own direction (over their length)."""
    wide, depth = tl.arange(0, WIDE), tl.arange(0, DEEP)
    column, real = _columns(CLASSES, SLOTS, WIDE, DEEP)
    begin = tl.program_id(0) * POINTS
    for start in range(begin, begin + POINTS, BLOCK):
        point = start + tl.arange(0, BLOCK)
        inside = point < total
        similarity, nearest, scale, target, _likeness, counted, right, logits = _judge(
            cosine, inverse, classes, exists, point, inside, sharpness, CLASSES, SLOTS, WIDE, DEEP, BLOCK
        )
        power = tl.exp(logits - tl.max(logits, axis=1)[:, None])
        own = wide[None, :] == target[:, None]
        share = power / tl.sum(power, axis=1)[:, None] - tl.where(own, 1.0, 0.0)
        part = 2 * ((point >= num_labeled).to(tl.int64) * CLASSES + target)
        change = tl.load(gradient + part, mask=counted, other=0.0) * sharpness
        change = tl.where(counted & (scale > 0), change * tl.where(right, 1.0, misclassified_weight), 0.0)
        finite = similarity > float("-inf")
        per_class = tl.where(finite, share * change[:, None], 0.0)
        radial = tl.sum(per_class * tl.where(finite, similarity, 0.0), axis=1)
        tl.store(along + point, radial * scale, mask=inside)
        chosen = depth[None, None, :] == nearest[:, :, None]
        spread = tl.reshape(tl.where(chosen, per_class[:, :, None], 0.0), (BLOCK, WIDE * DEEP))
        row = toward + point[:, None].to(tl.int64) * (CLASSES * SLOTS) + column[None, :]
        tl.store(row, spread, mask=inside[:, None] & real[None, :])
