"""For trainings of several processes: what a user of heads may need beside them."""

from __future__ import annotations

from torch import nn

from brpg_lib.ranks.agreement import require_same_everywhere
from brpg_lib.ranks.collectives import all_reduce_sum, gather_rows, rank, world_size
from brpg_lib.state import StateModule

__all__ = ["all_reduce_sum", "gather_rows", "keep_out_of_ddp", "rank", "require_same_everywhere", "world_size"]


def keep_out_of_ddp(model: nn.Module) -> None:
    """Tell ``DistributedDataParallel`` to leave the buffers of heads inside ``model`` alone.

    A head keeps itself equal on all ranks. DDP would broadcast its buffers, the queues among them, before each step.
    Needed only where a head is part of the model; call it before wrapping.

    Args:
        model: The model that will be wrapped.
    """
    names = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, StateModule)
        for name, _ in module.named_buffers()
    }
    ignored = names | set(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sorted(ignored))
