"""Gradients by kernels, which cannot be differentiated again."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.autograd.function import once_differentiable


def once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Say so where a gradient is asked for that is to be differentiated, and not when that happens.

    Raises:
        RuntimeError: (What is returned does.) Somebody differentiates with ``create_graph=True``.
    """
    own: Callable[..., Any] = once_differentiable(backward)

    @wraps(backward)
    def guarded(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the kernels of a head's step on CUDA have no second derivative, which create_graph=True asks for; "
                "under torch.use_deterministic_algorithms(True) the head takes plain operations, which have all"
            )
        return own(ctx, *gradients)

    return guarded
