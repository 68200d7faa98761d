"""For trainings of several processes: what a user of heads may need beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from brpg_lib.collect.saved_rows import SavedRows
from brpg_lib.ranks.agreement import require_same_everywhere
from brpg_lib.ranks.collectives import all_reduce_sum, gather_rows, rank, world_size

__all__ = [
    "all_reduce_sum",
    "gather_rows",
    "rank",
    "require_same_everywhere",
    "sized_as_saved",
    "world_size",
]


def sized_as_saved(state: Mapping[str, Any], checkpoint: str | os.PathLike[str] | Any) -> dict[str, Any]:
    """A state dict into which ``torch.distributed.checkpoint`` can load one with a head in it.

    It loads into tensors that are there, and those of a head are as large as what the head holds at the time: a
    checkpoint's queues are longer or shorter than those of a new head.

    >>> import tempfile
    >>> import torch.distributed.checkpoint as dcp
    >>> folder = tempfile.TemporaryDirectory()
    >>> _ = dcp.save({"model": {"rows": torch.ones(3, 2)}}, checkpoint_id=folder.name)
    >>> state = sized_as_saved({"model": {"rows": torch.zeros(0, 2)}}, folder.name)
    >>> dcp.load(state, checkpoint_id=folder.name)
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
        if type(value) not in (torch.Tensor, SavedRows) or not isinstance(saved, TensorStorageMetadata):
            return value
        if saved.size == value.shape:
            return value
        return torch.zeros(saved.size, dtype=saved.properties.dtype, device=value.device)

    fitting: dict[str, Any] = sized(state, "")
    return fitting
