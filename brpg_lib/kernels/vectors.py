"""Which feature vectors can be computed with."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_NORM = 1e-8
MAX_NORM = 1e15
"""Squared distances between longer vectors would overflow float32."""


def is_finite(rows: Tensor) -> Tensor:
    """Rows ``(N, D)`` whose length is finite, and short enough to be squared in float32: ``(N,)`` bool.

    Of maps ``(B, D, h, w)``, which pixels: ``(B, h, w)``.
    """
    return _norm(rows) <= MAX_NORM


def has_direction(rows: Tensor) -> Tensor:
    """Rows ``(N, D)`` that are finite and not zero, so that a cosine to them exists: ``(N,)`` bool."""
    norm = _norm(rows)
    return (norm > MIN_NORM) & (norm <= MAX_NORM)


def _norm(rows: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(rows.detach().float(), dim=1)
    return norm
