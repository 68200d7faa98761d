"""Reading a feature map at points, as if it had been upsampled to image size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from brpg_lib.kernels.vectors import MAX_NORM


def read(
    maps: Tensor, image: Tensor, row: Tensor, column: Tensor, size: tuple[int, int], *, align_corners: bool
) -> Tensor:
    """Values that bilinear upsampling of ``maps`` to ``size`` would have at the given pixels.

    The upsampled map is never made: four taps per point are read, so memory is proportional to the points. Values that
    are not finite, or too long to square, come as zeros.

    Args:
        maps: ``(B, D, h, w)`` floating point.
        image: ``(N,)`` int64, index of the image.
        row: ``(N,)`` int64 in [0, H).
        column: ``(N,)`` int64 in [0, W).
        size: ``(H, W)`` to which the map would be upsampled.
        align_corners: As in ``torch.nn.functional.interpolate``.

    Returns:
        ``(N, D)`` float32; differentiable with respect to ``maps``.
    """
    top, bottom, down = _taps(row, maps.shape[2], size[0], align_corners)
    left, right, along = _taps(column, maps.shape[3], size[1], align_corners)
    up, back = 1 - down, 1 - along
    weights = torch.stack((up * back, up * along, down * back, down * along))
    width = maps.shape[3]
    places = torch.stack((top * width + left, top * width + right, bottom * width + left, bottom * width + right))
    values: Tensor = _read(maps, image, places, weights)
    return values


# One opaque operator: how to read depends on where the maps lie in memory, and a graph need not know. The gradient is
# summed in float32, on the CPU always in the same order.


@torch.library.custom_op(
    "brpg_lib::weighted_taps",
    mutates_args=(),
    schema="(Tensor maps, Tensor image, Tensor places, Tensor weights) -> Tensor",  # torch 2.4 cannot tell by itself
)
def _read(maps: Tensor, image: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Sum of four taps of each point: ``places (4, N)`` in ``image (N,)`` of ``maps``, times ``weights (4, N)``."""
    if maps.device.type != "cpu" or not maps.is_contiguous():
        flat = maps.movedim(1, 3).flatten(1, 2)
        return _without_the_unusable((flat[image, places].float() * weights[..., None]).sum(0), dim=1)
    values = maps.new_empty(maps.shape[1], len(image), dtype=torch.float32)
    for index, members in _per_image(image, len(maps)):
        # One channel's map after the other fits the cache; a point's channels lie far apart.
        place = places[:, members]
        taps = maps[index].flatten(1).gather(1, place.flatten().expand(maps.shape[1], -1))
        taps = taps.float().unflatten(1, place.shape).mul_(weights[:, members])
        values[:, members] = taps.sum(1)
    return _without_the_unusable(values, dim=0).mT


def _without_the_unusable(vectors: Tensor, dim: int) -> Tensor:
    """Set vectors along ``dim`` that are not finite, or too long to square, to zero, in place."""
    return vectors.masked_fill_(~(torch.linalg.vector_norm(vectors, dim=dim, keepdim=True) <= MAX_NORM), 0.0)


@torch.library.custom_op(
    "brpg_lib::weighted_taps_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor image, Tensor places, Tensor weights, SymInt[] size, ScalarType dtype, "
    "bool by_channel) -> Tensor",
)
def _spread(
    gradient: Tensor,
    image: Tensor,
    places: Tensor,
    weights: Tensor,
    size: Sequence[int],
    dtype: torch.dtype,
    by_channel: bool,
) -> Tensor:
    """The gradient of :func:`_read` for maps of a size and type that lie channel by channel, or point by point."""
    batch, channels, height, width = size
    if gradient.device.type != "cpu" or not by_channel:
        shares = (gradient * weights[..., None]).flatten(0, 1)
        total = shares.new_zeros(batch * height * width, channels)
        total.index_add_(0, (image * (height * width) + places).flatten(), shares)
        spread = total.to(dtype).view(batch, height, width, channels).movedim(3, 1)
        return spread.contiguous() if by_channel else spread
    spread = torch.zeros(batch, channels, height * width)
    for index, members in _per_image(image, batch):
        place = places[:, members]
        shares = gradient.mT[:, None, members] * weights[:, members]
        spread[index].scatter_add_(1, place.flatten().expand(channels, -1), shares.flatten(1))
    return spread.view(batch, channels, height, width).to(dtype)


@_read.register_fake
def _(maps: Tensor, image: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    shape = image.shape[0], maps.shape[1]
    if maps.device.type == "cpu" and maps.is_contiguous():
        return maps.new_empty(shape[::-1], dtype=torch.float32).mT
    return maps.new_empty(shape, dtype=torch.float32)


@_spread.register_fake
def _(
    gradient: Tensor,
    image: Tensor,
    places: Tensor,
    weights: Tensor,
    size: Sequence[int],
    dtype: torch.dtype,
    by_channel: bool,
) -> Tensor:
    batch, channels, height, width = size
    if by_channel:
        return gradient.new_empty(batch, channels, height, width, dtype=dtype)
    return gradient.new_empty(batch, height, width, channels, dtype=dtype).movedim(3, 1)


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    maps, *others = inputs
    ctx.save_for_backward(*others)  # not the maps: nothing else may need them any longer
    ctx.size, ctx.dtype, ctx.by_channel = maps.shape, maps.dtype, maps.is_contiguous()


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return _spread(gradient, *ctx.saved_tensors, ctx.size, ctx.dtype, ctx.by_channel), None, None, None


_read.register_autograd(_backward, setup_context=_remember)


def _per_image(image: Tensor, num_images: int) -> Iterator[tuple[int, slice | Tensor]]:
    """The points of each image: a slice where they come image by image, else their indices."""
    counts = image.bincount(minlength=num_images).tolist()
    ordered = bool((image[1:] >= image[:-1]).all())
    order = None if ordered else image.argsort(stable=True)
    start = 0
    for index, count in enumerate(counts):
        if count:
            members = slice(start, start + count)
            yield index, members if order is None else order[members]
        start += count


def nearest(length: int, size: int, device: torch.device) -> Tensor:
    """Indices that nearest-neighbour resizing of ``length`` positions to ``size`` reads: ``(size,)`` int64."""
    ramp = torch.arange(length, device=device, dtype=torch.float32)
    return torch.nn.functional.interpolate(ramp[None, None], size=size, mode="nearest")[0, 0].long()


def _taps(position: Tensor, length: int, size: int, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the two taps of each position along one axis, and the weight of the second."""
    if align_corners:
        source = position * ((length - 1) / (size - 1) if size > 1 else 0.0)
    else:
        source = ((position + 0.5) * (length / size) - 0.5).clamp(min=0)
    first = source.floor().long().clamp(max=length - 1)
    return first, (first + 1).clamp(max=length - 1), source - first
