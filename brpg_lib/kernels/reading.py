"""Reading a feature map at points, as if it had been upsampled to image size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from brpg_lib.kernels.taps import weighted_taps


def read(
    maps: Tensor, image: Tensor, positions: Sequence[Tensor], size: Sequence[int], *, align_corners: bool
) -> Tensor:
    """Values that linear upsampling of ``maps`` to ``size`` would have at the given pixels.

    The upsampled map is never made: four taps per point are read, of a volume eight, so memory is proportional to the
    points. Values that are not finite, or too long to square, come as zeros.

    Args:
        maps: ``(B, D, h, w)`` floating point, or ``(B, D, d, h, w)``.
        image: ``(N,)`` int64, index of the image.
        positions: ``(N,)`` int64 along each axis: rows in [0, H), columns in [0, W); of a volume, slices before them.
        size: ``(H, W)`` or ``(D, H, W)`` to which the map would be upsampled.
        align_corners: As in ``torch.nn.functional.interpolate``.

    Returns:
        ``(N, D)`` float32; differentiable with respect to ``maps``.
    """
    taps: list[tuple[Tensor, Tensor]] = []
    for position, length, pixels in zip(positions, maps.shape[2:], size, strict=True):
        first, second, share = _taps(position, length, pixels, align_corners)
        axis = (first, 1 - share), (second, share)
        taps = [(p * length + q, v * w) for p, v in taps for q, w in axis] if taps else list(axis)
    places, weights = (torch.stack(values) for values in zip(*taps, strict=True))
    values: Tensor = weighted_taps(maps.flatten(3), image, places, weights)
    return values


def positions_of(place: Tensor, size: Sequence[int]) -> list[Tensor]:
    """Position along each axis of places ``(N,)`` in arrays of a size, whose last axis is the fastest."""
    return [place // math.prod(size[axis + 1 :]) % length for axis, length in enumerate(size)]


def nearest(length: int, size: int, device: torch.device) -> Tensor:
    """Indices that nearest-neighbour resizing of ``length`` positions to ``size`` reads: ``(size,)`` int64."""
    ramp = torch.arange(length, device=device, dtype=torch.float32)
    return torch.nn.functional.interpolate(ramp[None, None], size=size, mode="nearest")[0, 0].long()


def _taps(position: Tensor, length: int, size: int, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the two taps of each position along one axis, and the weight of the second."""
    if align_corners:
        source = position.float() * ((length - 1) / (size - 1) if size > 1 else 0.0)
    else:
        source = ((position.float() + 0.5) * (length / size) - 0.5).clamp(min=0)
    first = source.floor().long().clamp(max=length - 1)
    return first, (first + 1).clamp(max=length - 1), source - first
