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
        key: ``()`` int64.
        values: Integers or ``()`` int64 tensors.

    Returns:
        ``()`` int64 in [0, 2**32).
    """
    for value in values:
        key = _mix((key * 31 + value + _GOLDEN) & _MASK)
    return key


def uniform(shape: tuple[int, ...], key: Tensor) -> Tensor:
    """Uniform float32 numbers in the open interval (0, 1).

    Args:
        shape: Shape of the result.
        key: ``()`` int64, see :func:`fold`; equal keys give equal numbers.

    Returns:
        ``shape`` float32 on the device of ``key``.
    """
    index = torch.arange(math.prod(shape), device=key.device)
    first = _mix((index + key) & _MASK)
    second = _mix(first ^ fold(key, 1))  # or two keys would give the same numbers in another order
    return ((second >> 9).float() * 2.0**-23 + 2.0**-24).view(shape)  # 24 bits: float32 holds it exactly, below 1
