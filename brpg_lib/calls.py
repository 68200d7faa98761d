"""Who calls a module, and whether what it does then lasts."""

from __future__ import annotations

import torch
from torch import nn


def is_replica(module: nn.Module) -> bool:
    """Whether this is a copy that nn.DataParallel has made for one call."""
    return bool(getattr(module, "_is_replica", False))


def in_backward_pass() -> bool:
    """Whether a backward pass is running, which repeats calls that were checkpointed."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def require_lasting_call(module: nn.Module) -> None:
    """Require that a module with a state is called itself, once per step.

    Raises:
        RuntimeError: It is in a part that nn.DataParallel replicates, or that torch.utils.checkpoint calls again.
    """
    name = type(module).__name__
    if is_replica(module):
        raise RuntimeError(
            f"{name}: expected a call outside of nn.DataParallel, found one of a replica, whose state would be lost: "
            "return the features and logits, and call it with what nn.DataParallel gives back"
        )
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        raise RuntimeError(f"{name}: cannot be trained in torch.inference_mode(); call its eval() first")
    if in_backward_pass():
        raise RuntimeError(
            f"{name}: expected one call per step, found one that torch.utils.checkpoint repeats in the backward pass: "
            "call it outside of what is checkpointed"
        )
