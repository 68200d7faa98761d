"""For trainings of several processes: what a user of heads may need beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from brpg_lib.ranks.agreement import require_same_everywhere
from brpg_lib.ranks.collectives import all_reduce_sum, gather_rows, rank, world_size
from brpg_lib.state import StateModule

__all__ = [
    "all_reduce_sum",
    "gather_rows",
    "keep_out_of_ddp",
    "rank",
    "require_same_everywhere",
    "sized_as_saved",
    "world_size",
]


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


def sized_as_saved(state: Mapping[str, Any], checkpoint: str | os.PathLike[str] | Any) -> dict[str, Any]:
    """A state dict into which ``torch.distributed.checkpoint`` can load one with a head in it.

    It loads into tensors that are there, and those of a head are as large as what the head holds at the time: a
    checkpoint's queues are longer or shorter than those of a new head.

    >>> import tempfile
    >>> import torch.distributed.checkpoint as dcp
    >>> folder = tempfile.TemporaryDirectory()
    >>> _ = dcp.save({"model": {"rows": torch.ones(3, 2)}}, checkpoint_id=folder.name, no_dist=True)
    >>> state = sized_as_saved({"model": {"rows": torch.zeros(0, 2)}}, folder.name)
    >>> dcp.load(state, checkpoint_id=folder.name, no_dist=True)
    >>> state["model"]["rows"].shape  # now model.load_state_dict(state["model"])
    torch.Size([3, 2])
    >>> folder.cleanup()

    Args:
        state: As it would be given to ``dcp.load``; it may be nested.
        checkpoint: Folder of the checkpoint, or a ``torch.distributed.checkpoint.StorageReader``.

    Returns:
        The same with new tensors where the checkpoint's have other sizes. Sharded ones are never changed.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = FileSystemReader(checkpoint) if isinstance(checkpoint, (str, os.PathLike)) else checkpoint
    found = reader.read_metadata().state_dict_metadata

    def sized(value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return {key: sized(inner, f"{name}.{key}" if name else str(key)) for key, inner in value.items()}
        saved = found.get(name)
        if type(value) is not torch.Tensor or not isinstance(saved, TensorStorageMetadata):
            return value
        if saved.size == value.shape:
            return value
        return torch.zeros(saved.size, dtype=saved.properties.dtype, device=value.device)

    fitting: dict[str, Any] = sized(state, "")
    return fitting
