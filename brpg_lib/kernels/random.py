"""Random numbers as a pure function of a key.

A counter-based generator instead of ``torch.Generator``: the draws are equal on every device, need no hidden state
(a saved counter resumes them exactly), leave the global generators alone, and are ordinary tensor operations that a
CUDA graph or ``torch.compile`` captures.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9


def _mix(value: Tensor) -> Tensor:
    """A 32-bit integer hash in int64 arithmetic; the 27-bit multiplier keeps products below 2**63."""
    value = ((value ^ (value >> 16)) * 0x45D9F3B) & _MASK
    value = ((value ^ (value >> 16)) * 0x45D9F3B) & _MASK
    return value ^ (value >> 16)


def fold(key: Tensor, *values: int | Tensor) -> Tensor:
    """A new key from ``key`` and integers (a seed, a rank, a stream number).

    Args:
        key: int64 of any shape.
        values: Integers or int64 tensors that can be added to it.

    Returns:
        int64 in [0, 2**32), each place a key of its own.
    """
    for value in values:
        key = _mix((key * 31 + value + _GOLDEN) & _MASK)
    return key


def uniform(shape: tuple[int, ...], key: Tensor) -> Tensor:
    """Uniform float32 numbers in the open interval (0, 1).

    Args:
        shape: Shape of what each key gives.
        key: ``()`` or ``(G,)`` int64, see :func:`fold`; equal keys give equal numbers.

    Returns:
        ``shape``, or ``(G, *shape)``, float32 on the device of ``key``.
    """
    # 32-bit arithmetic wraps around where _mix masks, and is twice as fast.
    value = torch.arange(math.prod(shape), device=key.device, dtype=torch.int32) + _wrapped(key)[..., None]
    _mix_(value)
    value.bitwise_xor_(_wrapped(fold(key, 1))[..., None])  # or two keys would give the same numbers in another order
    _mix_(value)
    # 24 bits: float32 holds them exactly, below 1
    value = value.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF)
    return value.float().mul_(2.0**-23).add_(2.0**-24).view(*key.shape, *shape)


def _wrapped(key: Tensor) -> Tensor:
    """A key in [0, 2**32) as the int32 of the same bits."""
    return torch.where(key > 0x7FFFFFFF, key - 0x100000000, key).to(torch.int32)


def _mix_(value: Tensor) -> None:
    """:func:`_mix` of int32, in place."""
    for _ in range(2):
        value.bitwise_xor_((value >> 16).bitwise_and_(0xFFFF)).mul_(0x45D9F3B)
    value.bitwise_xor_((value >> 16).bitwise_and_(0xFFFF))
