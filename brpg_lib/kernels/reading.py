"""Reading a feature map at points, as if it had been upsampled to image size."""

from __future__ import annotations

import torch
from torch import Tensor

from brpg_lib.kernels.taps import weighted_taps


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
    values: Tensor = weighted_taps(maps, image, places, weights)
    return values


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
