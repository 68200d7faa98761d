"""Points of feature maps: where they are, their features and classes, in one launch per batch of images."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from brpg_lib.kernels.fused.once import once
from brpg_lib.kernels.vectors import MAX_NORM, MIN_NORM

TILE = 2048
"""Numbers that a program holds of each tap."""


class Where(NamedTuple):
    """Which pixels of which images are points.

    Attributes:
        labels: ``(B, H, W)`` integers.
        pixels: ``(N,)`` int64, flat indices of these; None for a regular grid.
        scores: ``(B * H * W,)`` float32; a pixel counts where it is above 0. None where all count.
        grid: Points of an image along both axes, and the steps between them (see
            :func:`brpg_lib.learn.points.grid_positions`); ``(0, 0, 0, 0)`` without a grid.
    """

    labels: Tensor
    pixels: Tensor | None
    scores: Tensor | None
    grid: tuple[int, int, int, int]

    @property
    def number(self) -> int:
        """Number of points N."""
        return len(self.labels) * self.grid[0] * self.grid[1] if self.pixels is None else len(self.pixels)


class Read(NamedTuple):
    """Points, those of all batches one after the other.

    Attributes:
        features: ``(N, D)`` float32, differentiable; zeros where they are not finite.
        inverse: ``(N,)`` float32, 1 / length of the features, 0 where they have no direction.
        classes: ``(N,)`` int64, the ignore index where a point does not count.
        dropped: ``(N,)`` int32, 1 where a point was left out, as :class:`brpg_lib.learn.points.Points` says.
    """

    features: Tensor
    inverse: Tensor
    classes: Tensor
    dropped: Tensor


def read_points(
    maps: list[Tensor], where: list[Where], *, align_corners: bool, num_classes: int, ignore_index: int
) -> Read:
    """Read points of feature maps, as if these had been enlarged to the labels' size.

    As :func:`brpg_lib.kernels.reading.read` with what :mod:`brpg_lib.learn.points` does about it.

    Args:
        maps: ``(B, D, h, w)`` floating point, for each batch; differentiable.
        where: The points of each.
        align_corners: As in ``torch.nn.functional.interpolate``.
        num_classes: Number of classes C.
        ignore_index: Class of points that do not count.
    """
    options = (align_corners, num_classes, ignore_index)
    return Read(*_ReadPoints.apply(where, options, *maps))


class _ReadPoints(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, where: list[Where], options: tuple[bool, int, int], *maps: Tensor) -> tuple[Tensor, ...]:
        align_corners, num_classes, ignore_index = options
        total, dim, device = sum(w.number for w in where), maps[0].shape[1], maps[0].device
        features = torch.empty(total, dim, dtype=torch.float32, device=device)
        inverse = torch.empty(total, dtype=torch.float32, device=device)
        classes = torch.empty(total, dtype=torch.int64, device=device)
        dropped = torch.empty(total, dtype=torch.int32, device=device)
        start = 0
        for values, own in zip(maps, where, strict=True):
            here = slice(start, start + own.number)
            start += own.number
            found = features[here], inverse[here], classes[here], dropped[here]
            limits = {"MIN_NORM": MIN_NORM, "MAX_NORM": MAX_NORM}
            _launch(values, own, align_corners, _read, found, num_classes, ignore_index, **limits)
        ctx.where, ctx.align_corners = where, align_corners
        ctx.like = [(v.shape, v.dtype, v.is_contiguous()) for v in maps]
        ctx.mark_non_differentiable(inverse, classes, dropped)
        return features, inverse, classes, dropped

    @staticmethod
    @once
    def backward(ctx: Any, gradient: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradient.contiguous()
        found: list[Tensor | None] = []
        start = 0
        wanted = ctx.needs_input_grad[2:]
        for own, (size, dtype, by_channel), asked in zip(ctx.where, ctx.like, wanted, strict=True):
            here = slice(start, start + own.number)
            start += own.number
            if not asked:
                found.append(None)
                continue
            batch, channels, height, width = size
            total = gradient.new_zeros(batch, height, width, channels)
            _launch(total.movedim(3, 1), own, ctx.align_corners, _spread, (gradient[here],))
            spread = total.to(dtype).movedim(3, 1)
            found.append(spread.contiguous() if by_channel else spread)
        return None, None, *found


def _launch(
    values: Tensor,
    where: Where,
    align_corners: bool,
    kernel: Any,
    found: tuple[Tensor, ...],
    *options: int,
    **constants: float,
) -> None:
    """Run a kernel over the points of one batch."""
    if not where.number:
        return
    _, dim, height, width = values.shape
    labels = where.labels if where.labels.is_contiguous() else where.labels.contiguous()
    _, tall, wide = labels.shape
    if align_corners:
        scales = ((height - 1) / (tall - 1) if tall > 1 else 0.0, (width - 1) / (wide - 1) if wide > 1 else 0.0)
    else:
        scales = (height / tall, width / wide)
    sizes = tile(dim)
    with torch.cuda.device_of(values):
        kernel[(triton.cdiv(where.number, sizes["BLOCK"]),)](
            values, labels, labels if where.pixels is None else where.pixels,
            labels if where.scores is None else where.scores, *found,
            where.number, dim, height, width, tall, wide, *where.grid, *scales, *values.stride(), *options,
            GRID=where.pixels is None, SCORED=where.scores is not None, CORNERS=align_corners,
            **sizes, **constants,
        )  # fmt: skip


def tile(dim: int) -> dict[str, int]:
    """Sizes that fit the registers."""
    width = triton.next_power_of_2(dim)
    return {"BLOCK": max(1, TILE // width), "WIDTH": width, "num_warps": 4 if width <= 512 else 8}


@triton.jit  # type: ignore[untyped-decorator]
def _place(  # type: ignore[no-untyped-def]
    pixels, point, inside, tall, wide, rows, columns, row_step, column_step, GRID: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Image, row and column of points."""
    if GRID:
        image = point // (rows * columns)
        row, column = point // columns % rows, point % columns
        row = tl.where(row == rows - 1, tall - 1, row * row_step).to(tl.int64)
        column = tl.where(column == columns - 1, wide - 1, column * column_step).to(tl.int64)
        return image.to(tl.int64), row, column
    else:
        pixel = tl.load(pixels + point, mask=inside, other=0)
        return pixel // (tall * wide), pixel // wide % tall, pixel % wide


@triton.jit  # type: ignore[untyped-decorator]
def _axis(position, length, scale, stride, CORNERS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Where the two taps along an axis lie ``(BLOCK, 1)``, and the weight of the second ``(BLOCK,)``."""
    source = position.to(tl.float32)
    if CORNERS:  # noqa: SIM108 (the compiler leaves a side of a statement out, not of an expression)
        source = source * scale
    else:
        source = tl.maximum((source + 0.5) * scale - 0.5, 0.0)
    first = tl.minimum(tl.floor(source).to(tl.int64), length - 1)
    second = tl.minimum(first + 1, length - 1)
    return (first * stride)[:, None], (second * stride)[:, None], source - first.to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _read(  # type: ignore[no-untyped-def]
    maps, labels, pixels, scores, features, inverse, classes, dropped,
    count, dim, height, width, tall, wide, rows, columns, row_step, column_step, row_scale, column_scale,
    image_stride, channel_stride, row_stride, column_stride, num_classes, ignore_index,
    GRID: tl.constexpr, SCORED: tl.constexpr, CORNERS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, MIN_NORM: tl.constexpr, MAX_NORM: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """See :func:`read_points`: BLOCK points."""
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = point < count
    image, row, column = _place(pixels, point, inside, tall, wide, rows, columns, row_step, column_step, GRID)
    channel = tl.arange(0, WIDTH)
    valid = inside[:, None] & (channel < dim)[None, :]
    start = maps + (image * image_stride)[:, None] + channel[None, :].to(tl.int64) * channel_stride
    up, low, down = _axis(row, height, row_scale, row_stride, CORNERS)
    west, east, along = _axis(column, width, column_scale, column_stride, CORNERS)
    up, low = start + up, start + low
    value = tl.load(up + west, mask=valid, other=0.0).to(tl.float32) * ((1 - down) * (1 - along))[:, None]
    value += tl.load(up + east, mask=valid, other=0.0).to(tl.float32) * ((1 - down) * along)[:, None]
    value += tl.load(low + west, mask=valid, other=0.0).to(tl.float32) * (down * (1 - along))[:, None]
    value += tl.load(low + east, mask=valid, other=0.0).to(tl.float32) * (down * along)[:, None]

    length = tl.sqrt(tl.sum(value * value, axis=1))
    usable = (length > MIN_NORM) & (length <= MAX_NORM)
    value = tl.where((length <= MAX_NORM)[:, None], value, 0.0)
    tl.store(features + point[:, None].to(tl.int64) * dim + channel[None, :], value, mask=valid)
    tl.store(inverse + point, tl.where(usable, 1.0 / length, 0.0), mask=inside)

    pixel = (image * tall + row) * wide + column
    label = tl.load(labels + pixel, mask=inside, other=0).to(tl.int64)
    if SCORED:
        label = tl.where(tl.load(scores + pixel, mask=inside, other=0.0) > 0, label, ignore_index)
    known = (label >= 0) & (label < num_classes)
    tl.store(classes + point, tl.where(known & usable, label, ignore_index), mask=inside)
    left_out = (known & (usable == 0)) | ((known == 0) & (label != ignore_index))
    tl.store(dropped + point, left_out.to(tl.int32), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _spread(  # type: ignore[no-untyped-def]
    maps, labels, pixels, scores, gradient,
    count, dim, height, width, tall, wide, rows, columns, row_step, column_step, row_scale, column_scale,
    image_stride, channel_stride, row_stride, column_stride,
    GRID: tl.constexpr, SCORED: tl.constexpr, CORNERS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr, WIDTH: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Add what :func:`_read` has taken from each place of the maps, which lie point by point."""
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = point < count
    image, row, column = _place(pixels, point, inside, tall, wide, rows, columns, row_step, column_step, GRID)
    channel = tl.arange(0, WIDTH)
    valid = inside[:, None] & (channel < dim)[None, :]
    start = maps + (image * image_stride)[:, None] + channel[None, :].to(tl.int64) * channel_stride
    up, low, down = _axis(row, height, row_scale, row_stride, CORNERS)
    west, east, along = _axis(column, width, column_scale, column_stride, CORNERS)
    up, low = start + up, start + low
    share = tl.load(gradient + point[:, None].to(tl.int64) * dim + channel[None, :], mask=valid, other=0.0)
    tl.atomic_add(up + west, share * ((1 - down) * (1 - along))[:, None], mask=valid)
    tl.atomic_add(up + east, share * ((1 - down) * along)[:, None], mask=valid)
    tl.atomic_add(low + west, share * (down * (1 - along))[:, None], mask=valid)
    tl.atomic_add(low + east, share * (down * along)[:, None], mask=valid)
