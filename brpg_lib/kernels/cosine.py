"""Cosine similarity to groups of fixed directions as one matrix product, without a normalized copy of the features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from brpg_lib.kernels.vectors import MAX_NORM, MIN_NORM


def cosine_to_groups(features: Tensor, directions: Tensor, exists: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Cosine similarity of each feature to the most similar direction of each group, and to every direction.

    Args:
        features: ``(N, D)`` floating point, differentiable. A row without direction (nearly zero, or longer than 1e15)
            has similarity 0, one that is not finite -inf. Neither gets a gradient.
        directions: ``(M, D)`` float32 of length 1, without gradient; M is a multiple of the groups, which follow each
            other.
        exists: ``(M,)`` bool; where false, the similarity is -inf.
        groups: Number of groups G.

    Returns:
        ``(N, G)`` float32, differentiable, and ``(N, M)`` float32 without gradient.
    """
    if _exporting():
        return _differentiable(features, directions, exists, groups)
    if not (features.requires_grad and torch.is_grad_enabled()):
        cosine = _cosine(features, directions, exists)[0]
        return cosine.unflatten(1, (groups, -1)).amax(2), cosine
    similarity, cosine = _CosineToGroups.apply(features, directions, exists, groups)
    return similarity, cosine


def _lengths(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths of rows, whether they can be divided by, and whether the row is finite; all ``(N, 1)``."""
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    finite = torch.linalg.vector_norm(rows, ord=torch.inf, dim=1, keepdim=True) < torch.inf
    return norm, (norm > MIN_NORM) & (norm <= MAX_NORM), finite


def _cosine(features: Tensor, directions: Tensor, exists: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The similarities ``(N, M)``; ``(N, 1)`` bool, rows that have any; and ``(N, 1)``, 1 / length of these, or 0."""
    rows = features.float()
    norm, usable, finite = _lengths(rows)
    inverse = torch.where(usable, 1 / norm, 0.0)
    cosine = (rows @ directions.T).mul_(inverse).masked_fill_(~usable, 0.0)
    return cosine.masked_fill_(~(finite & exists), -torch.inf), usable, inverse


def _differentiable(features: Tensor, directions: Tensor, exists: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """:func:`cosine_to_groups` in plain operations: any exporter knows them, and each derivative has a derivative."""
    rows = features.float()
    _, usable, finite = _lengths(rows)
    rows = torch.where(usable, rows, 0.0)  # or a gradient of 0 would become NaN
    inverse = 1 / torch.where(usable, torch.linalg.vector_norm(rows, dim=1, keepdim=True), 1.0)
    cosine = (rows @ directions.T * inverse).masked_fill(~(finite & exists), -torch.inf)
    return cosine.unflatten(1, (groups, -1)).amax(2), cosine.detach()


def _exporting() -> bool:
    """Whether somebody makes a graph that has to run elsewhere."""
    jit: Any = torch.jit  # which declares no types
    exporting: Any = getattr(torch.compiler, "is_exporting", bool)  # torch 2.7 and newer have it
    return bool(jit.is_tracing() or exporting())


class _CosineToGroups(torch.autograd.Function):
    """The gradient reaches one direction of each group only, so that no ``(N, M)`` graph is kept."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, directions: Tensor, exists: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        cosine, usable, inverse = _cosine(features, directions, exists)
        similarity, slot = cosine.unflatten(1, (groups, -1)).max(2)
        ctx.save_for_backward(features, directions, exists, similarity, slot, usable, inverse)
        ctx.mark_non_differentiable(cosine)
        return similarity, cosine

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        features, directions, exists, similarity, slot, usable, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the gradient will be differentiated
            with torch.autocast(features.device.type, enabled=False):  # whoever calls backward may be under it
                again, _ = _differentiable(features, directions, exists, slot.shape[1])
                (found,) = torch.autograd.grad(again, features, gradients[0], create_graph=True)
            return found, None, None, None
        # Similarities of -inf have no gradient, nor have rows without direction.
        counts = usable & similarity.isfinite()
        share = torch.where(counts, gradients[0], 0.0)
        slots = len(directions) // slot.shape[1]
        place = torch.arange(slot.shape[1], device=slot.device) * slots + slot
        toward = nn.functional.embedding_bag(place, directions, per_sample_weights=share, mode="sum")
        # d(f.p / |f|) = (p - f (f.p) / |f|^2) / |f|
        along = (share * torch.where(counts, similarity, 0.0)).sum(dim=1, keepdim=True) * inverse
        gradient = toward.addcmul_(features.float(), along, value=-1).mul_(inverse)
        return gradient.masked_fill_(~usable, 0.0).to(features.dtype), None, None, None
