"""Cosine similarity to fixed directions as one matrix product, without a normalized copy of the features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from brpg_lib.kernels.vectors import MAX_NORM, MIN_NORM


def cosine(features: Tensor, directions: Tensor, exists: Tensor) -> Tensor:
    """Cosine similarity of each feature to each direction.

    Args:
        features: ``(N, D)`` floating point, differentiable. A row without direction (nearly zero, or longer than 1e15)
            has similarity 0, one that is not finite -inf. Neither gets a gradient.
        directions: ``(M, D)`` float32 of length 1, without gradient.
        exists: ``(M,)`` bool; where false, the similarity is -inf.

    Returns:
        ``(N, M)`` float32.
    """
    if not (features.requires_grad and torch.is_grad_enabled()):
        return _similarity(features, directions, exists)[0]  # plain operations, which any exporter knows
    similarity: Tensor = _Cosine.apply(features, directions, exists)
    return similarity


def _similarity(features: Tensor, directions: Tensor, exists: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The result ``(N, M)``, the same before places without similarity are marked, and 1 / length ``(N, 1)``."""
    rows = features.float()
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    usable = (norm > MIN_NORM) & (norm <= MAX_NORM)
    inverse = torch.where(usable, 1 / norm, 0.0)
    similarity = (rows @ directions.T).mul_(inverse).masked_fill_(~usable, 0.0)
    finite = torch.linalg.vector_norm(rows, ord=torch.inf, dim=1, keepdim=True) < torch.inf
    return similarity.masked_fill(~(finite & exists), -torch.inf), similarity, inverse


class _Cosine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, directions: Tensor, exists: Tensor) -> Tensor:
        marked, similarity, inverse = _similarity(features, directions, exists)
        ctx.save_for_backward(features, directions, similarity, inverse)
        return marked

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        features, directions, similarity, inverse = ctx.saved_tensors
        scaled = gradients[0] * inverse
        # d(f.p / |f|) = p / |f| - f (f.p) / |f|^3
        along = (scaled * similarity).sum(dim=1, keepdim=True) * inverse
        gradient = (scaled @ directions).addcmul_(features.float(), along, value=-1)
        return gradient.masked_fill_(inverse == 0, 0.0).to(features.dtype), None, None
