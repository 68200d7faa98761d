"""From the pixels of a step into the ring buffers, without a copy of the features in between."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from brpg_lib.kernels.fused import reading
from brpg_lib.kernels.vectors import MAX_NORM

TILE = 2048
"""Numbers that a program holds, of logits or of features."""
CHANNELS = 32
"""Of which lengths are added up at a time."""
PIXELS = 1024
"""That a program gives a ring."""


class Candidates(NamedTuple):
    """What pixels are, those of all batches one after the other.

    Attributes:
        groups: ``(M,)`` int64; -1 for a pixel that is no candidate.
        classes: ``(M,)`` int64.
        confidence: ``(M,)`` float32.
        lost: ``(M,)`` int32, 1 for a pixel left out because its logits or features are not finite.
        refused: ``(M,)`` int32, 1 for one whose features are not finite in the type of the rings.
    """

    groups: Tensor
    classes: Tensor
    confidence: Tensor
    lost: Tensor
    refused: Tensor

    @classmethod
    def empty(cls, number: int, device: torch.device) -> Candidates:
        """Room for so many pixels."""
        types = (torch.int64, torch.int64, torch.float32, torch.int32, torch.int32)
        return cls(*(torch.empty(number, dtype=dtype, device=device) for dtype in types))


def judge_pixels(
    found: Candidates,
    start: int,
    maps: Tensor,
    logits: Tensor,
    thresholds: Tensor,
    floor: float,
    labels: Tensor | None,
    shown: Tensor | None,
    dtype: torch.dtype,
) -> None:
    """Sort the pixels of feature maps into groups.

    As :class:`brpg_lib.ConfidenceSampler` does before it draws.

    Args:
        found: Written from ``start`` on.
        start: Number of pixels before these.
        maps: ``(B, D, h, w)`` features.
        logits: ``(B, C, h, w)``.
        thresholds: ``(C,)`` float32 confidence from which a pixel of a class is high.
        floor: Confidence above which it is low; without labels nothing is.
        labels: ``(B, H, W)`` integers that the prediction has to meet, or None.
        shown: ``(B, H, W)`` bool, which pixels count at all; None for all of them.
        dtype: Of the rings.
    """
    images, dim, height, width = maps.shape
    total, classes = images * height * width, logits.shape[1]
    look = maps if labels is None else labels.contiguous()
    if shown is not None:
        look = shown.contiguous()
        look = look.view(torch.uint8) if look.dtype == torch.bool else look
    tall, wide = look.shape[1:] if labels is not None or shown is not None else (height, width)
    sizes = tile(classes)
    with torch.cuda.device_of(maps):
        _judge[(triton.cdiv(total, sizes["BLOCK"]),)](
            maps, logits, thresholds, look, *(values[start:] for values in found),
            total, dim, classes, height, width, tall, wide, tall / height, wide / width, floor,
            *maps.stride(), *logits.stride(),
            LABELED=labels is not None, SHOWN=shown is not None, NARROW=dtype == torch.float16, MAX_NORM=MAX_NORM,
            **sizes,
        )  # fmt: skip


def tile(classes: int) -> dict[str, int]:
    """Sizes that fit the registers."""
    columns = triton.next_power_of_2(classes)
    return {"BLOCK": max(1, TILE // columns), "COLUMNS": columns, "CHANNELS": CHANNELS}


def write_rings(
    maps: list[Tensor], found: Candidates, features: Tensor, confidence: Tensor, rows: Tensor, cursor: Tensor
) -> None:
    """Write the pixels that have a group into the rings of their class and group, in their order.

    As :meth:`brpg_lib.FeatureQueue.append`.

    Args:
        maps: ``(B, D, h, w)`` of each batch.
        found: Their pixels.
        features: ``(C, S, capacity, D)``, changed.
        confidence: ``(C, S, capacity)`` float32, changed.
        rows: ``(C, 2)`` int64, changed.
        cursor: ``(C, 2)`` int64, changed.
    """
    classes, groups, capacity, dim = features.shape
    slots, device = classes * groups, features.device
    number = len(found.groups)
    slot = torch.empty_like(found.groups)
    sizes = reading.tile(dim)
    with torch.cuda.device_of(features):
        _slots[(triton.cdiv(number, PIXELS),)](
            *found[:2], found.refused, slot, number, groups, slots, BLOCK=PIXELS,
        )  # fmt: skip
        slot, order = slot.sort(stable=True)
        bounds = torch.searchsorted(slot, torch.arange(slots + 1, device=device))
        start = 0
        for values in maps:
            images, _, height, across = values.shape
            end = start + images * height * across
            _write[(triton.cdiv(number, sizes["BLOCK"]),)](
                values, found.confidence, slot, order, bounds, cursor, features, confidence,
                number, start, end, dim, height, across, capacity, groups, slots, *values.stride(),
                **sizes,
            )  # fmt: skip
            start = end
        _advance[(1,)](bounds, rows, cursor, capacity, groups, slots, BLOCK=triton.next_power_of_2(slots))


@triton.jit  # type: ignore[untyped-decorator]
def _lengths(  # type: ignore[no-untyped-def]
    cell, inside, dim, channel_stride, NARROW: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Squared lengths of features ``(BLOCK,)``, and whether float16 has no number for one of theirs."""
    square = tl.zeros((BLOCK,), tl.float32)
    high = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, dim, CHANNELS):
        channel = begin + tl.arange(0, CHANNELS)
        valid = inside[:, None] & (channel < dim)[None, :]
        place = cell[:, None] + channel[None, :].to(tl.int64) * channel_stride
        value = tl.load(place, mask=valid, other=0.0).to(tl.float32)
        square += tl.sum(value * value, axis=1)
        if NARROW:
            high = tl.maximum(high, tl.max(tl.abs(value), axis=1))
    return square, high >= 65520.0


@triton.jit  # type: ignore[untyped-decorator]
def _judge(  # type: ignore[no-untyped-def]
    maps, logits, thresholds, look, groups, classes, confidence, lost, refused,
    total, dim, num_classes, height, width, tall, wide, row_scale, column_scale, floor,
    image_stride, channel_stride, row_stride, column_stride,
    logits_image, logits_channel, logits_row, logits_column,
    LABELED: tl.constexpr, SHOWN: tl.constexpr, NARROW: tl.constexpr, MAX_NORM: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """See :func:`judge_pixels`: BLOCK pixels."""
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < total
    image, row, column = pixel // (height * width), pixel // width % height, pixel % width
    image, row, column = image.to(tl.int64), row.to(tl.int64), column.to(tl.int64)
    own = tl.arange(0, COLUMNS)
    place = logits + image * logits_image + row * logits_row + column * logits_column
    there = inside[:, None] & (own < num_classes)[None, :]
    value = tl.load(place[:, None] + own[None, :].to(tl.int64) * logits_channel, mask=there, other=float("-inf"))
    value = value.to(tl.float32)
    real = value < float("inf")  # neither that nor NaN
    broken = tl.sum(tl.where(real, 0, 1), axis=1) > 0
    value = tl.where(real, value, float("-inf"))
    most = tl.max(value, axis=1)
    sure = 1.0 / tl.sum(tl.exp(value - most[:, None]), axis=1)
    predicted = tl.argmax(value, axis=1)

    cell = maps + image * image_stride + row * row_stride + column * column_stride
    square, narrow = _lengths(cell, inside, dim, channel_stride, NARROW, BLOCK, CHANNELS)
    known = inside
    label = predicted.to(tl.int64)
    if LABELED or SHOWN:  # by nearest neighbour
        above = tl.minimum(tl.floor(row.to(tl.float32) * row_scale).to(tl.int64), tall - 1)
        left = tl.minimum(tl.floor(column.to(tl.float32) * column_scale).to(tl.int64), wide - 1)
        seen = tl.load(look + (image * tall + above) * wide + left, mask=inside, other=0).to(tl.int64)
        if LABELED:
            label = seen
            known = inside & (label >= 0) & (label < num_classes)
        else:
            known = inside & (seen > 0)
    usable = (broken == 0) & (sure > 0.0) & (sure <= 1.0) & (tl.sqrt(square) <= MAX_NORM)
    limits = tl.load(thresholds + tl.where(known, label, 0), mask=known, other=2.0)
    group = tl.where(sure >= limits, 0, -1)
    if LABELED:
        group = tl.where((group < 0) & (sure > floor), 1, group)
        group = tl.where(predicted == label, group, -1)
    group = tl.where(known & usable, group, -1)
    tl.store(groups + pixel, group.to(tl.int64), mask=inside)
    tl.store(classes + pixel, tl.where(known, label, 0), mask=inside)
    tl.store(confidence + pixel, sure, mask=inside)
    tl.store(lost + pixel, (known & (usable == 0)).to(tl.int32), mask=inside)
    tl.store(refused + pixel, narrow.to(tl.int32), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _slots(groups, classes, refused, slot, number, num_groups, slots, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """The ring of each pixel; one after the last for those that go into none."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < number
    group = tl.load(groups + place, mask=inside, other=-1)
    kept = (group >= 0) & (tl.load(refused + place, mask=inside, other=1) == 0)
    own = tl.load(classes + place, mask=inside, other=0)
    tl.store(slot + place, tl.where(kept, own * num_groups + group, slots), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _write(  # type: ignore[no-untyped-def]
    maps, sure, slot, order, bounds, cursor, features, confidence,
    number, first, end, dim, height, width, capacity, num_groups, slots,
    image_stride, channel_stride, row_stride, column_stride,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """BLOCK pixels, sorted by ring, of which those from ``first`` to ``end`` are of these maps."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < number
    ring = tl.load(slot + place, mask=inside, other=slots)
    source = tl.load(order + place, mask=inside, other=0)
    inside = inside & (ring < slots) & (source >= first) & (source < end)
    begin = tl.load(bounds + ring, mask=inside, other=0)
    rank = place - begin
    count = tl.load(bounds + ring + 1, mask=inside, other=0) - begin
    inside = inside & (rank >= count - capacity)  # more than fit: only the newest stay
    ahead = tl.load(cursor + ring // num_groups * 2 + ring % num_groups, mask=inside, other=0)
    target = ring * capacity + (ahead + rank) % capacity
    tl.store(confidence + target, tl.load(sure + source, mask=inside, other=0.0), mask=inside)
    pixel = source - first
    image, row, column = pixel // (height * width), pixel // width % height, pixel % width
    channel = tl.arange(0, WIDTH)
    valid = inside[:, None] & (channel < dim)[None, :]
    cell = maps + image * image_stride + row * row_stride + column * column_stride
    value = tl.load(cell[:, None] + channel[None, :].to(tl.int64) * channel_stride, mask=valid, other=0.0)
    value = value.to(tl.float32).to(features.dtype.element_ty)
    tl.store(features + target[:, None] * dim + channel[None, :], value, mask=valid)


@triton.jit  # type: ignore[untyped-decorator]
def _advance(bounds, rows, cursor, capacity, num_groups, slots, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Count what was written."""
    ring = tl.arange(0, BLOCK)
    inside = ring < slots
    count = tl.load(bounds + ring + 1, mask=inside, other=0) - tl.load(bounds + ring, mask=inside, other=0)
    place = ring // num_groups * 2 + ring % num_groups
    held = tl.load(rows + place, mask=inside, other=0)
    tl.store(rows + place, tl.minimum(held + count, capacity), mask=inside)
    ahead = tl.load(cursor + place, mask=inside, other=0)
    tl.store(cursor + place, (ahead + count) % capacity, mask=inside)
