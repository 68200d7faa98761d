"""Weighted sums of a few places of a feature map per point, and their gradient.

One opaque operator: how to read depends on where the maps lie in memory, and a graph need not know. The gradient is
summed in float32, on the CPU always in the same order.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from brpg_lib.kernels.optional import works
from brpg_lib.kernels.vectors import is_finite


@torch.library.custom_op(
    "brpg_lib::weighted_taps",
    mutates_args=(),
    schema="(Tensor maps, Tensor image, Tensor places, Tensor weights) -> Tensor",  # torch 2.4 cannot tell by itself
)
def weighted_taps(maps: Tensor, image: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Sum of the taps of each point: four, or of a volume eight.

    Args:
        maps: ``(B, D, h, w)`` floating point; h is that of all slices of a volume.
        image: ``(N,)`` int64, index of the image.
        places: ``(T, N)`` int64 in [0, h * w).
        weights: ``(T, N)`` float32.

    Returns:
        ``(N, D)`` float32, differentiable with respect to ``maps``; zeros where values are not finite, or too long to
        square.
    """
    if maps.device.type != "cpu" or not maps.is_contiguous():
        flat = maps.movedim(1, 3).flatten(1, 2)
        values = (flat[image, places].float() * weights[..., None]).sum(0)
    elif _compiled(maps.dtype, len(places)):
        from brpg_lib.kernels.taps import numba_taps

        values = numba_taps.gather(maps.flatten(2), image, places, weights)
    else:
        values = torch.empty(len(image), maps.shape[1], dtype=torch.float32, device="cpu")
        for index, members in _per_image(image, len(maps)):
            # One channel's map after the other fits the cache; a point's channels lie far apart.
            place = places[:, members]
            taps = maps[index].flatten(1).gather(1, place.flatten().expand(maps.shape[1], -1))
            values[members] = taps.float().unflatten(1, place.shape).mul_(weights[:, members]).sum(1).mT
    return values.masked_fill_(~is_finite(values)[:, None], 0.0)


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
    """The gradient for maps of a size and type that lie channel by channel, or point by point."""
    batch, channels, height, width = size
    if gradient.device.type != "cpu" or not by_channel:
        shares = (gradient * weights[..., None]).flatten(0, 1)
        total = shares.new_zeros(batch * height * width, channels)
        total.index_add_(0, (image * (height * width) + places).flatten(), shares)
        spread = total.to(dtype).view(batch, height, width, channels).movedim(3, 1)
        return spread.contiguous() if by_channel else spread
    if _compiled(torch.float32, len(places)):
        from brpg_lib.kernels.taps import numba_taps

        spread = numba_taps.spread(gradient.contiguous(), image, places, weights, (batch, channels, height * width))
    else:
        spread = torch.zeros(batch, channels, height * width, dtype=torch.float32, device="cpu")
        for index, members in _per_image(image, batch):
            place = places[:, members]
            shares = gradient.mT[:, None, members] * weights[:, members]
            spread[index].scatter_add_(1, place.flatten().expand(channels, -1), shares.flatten(1))
    return spread.view(batch, channels, height, width).to(dtype)


@weighted_taps.register_fake
def _(maps: Tensor, image: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    return maps.new_empty(image.shape[0], maps.shape[1], dtype=torch.float32)


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


def _remember_places(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:4])


def _backward_of_spread(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """What a gradient of the gradient takes: the same taps."""
    return weighted_taps(gradient, *ctx.saved_tensors), None, None, None, None, None, None


weighted_taps.register_autograd(_backward, setup_context=_remember)
_spread.register_autograd(_backward_of_spread, setup_context=_remember_places)


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


@cache
def _compiled(dtype: torch.dtype, taps: int) -> bool:
    """Whether there are compiled loops for maps of this type, and so many taps."""
    module = "brpg_lib.kernels.taps.numba_taps"
    return dtype == torch.float32 and taps == 4 and works("numba", lambda: importlib.import_module(module))
