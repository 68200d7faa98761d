"""Layers of a network by name, whatever is wrapped around it."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
"""Attributes under which DDP, DataParallel, torch.compile, checkpoint wrappers and FSDP keep what they wrap."""


def layer_of(module: nn.Module, path: str) -> nn.Module:
    """The layer of that name, with or without the names of the wrappers around it."""
    named: dict[str, nn.Module] = {name: layer for name, layer in module.named_modules(remove_duplicate=False) if name}
    if path in named:
        return named[path]
    bare: dict[str, nn.Module] = {}
    for name, layer in named.items():  # a wrapper comes before what it wraps
        bare.setdefault(".".join(part for part in name.split(".") if part not in WRAPPERS), layer)
    bare.pop("", None)
    if path in bare:
        return bare[path]
    near = difflib.get_close_matches(path, bare, cutoff=0.3) or [name for name in bare if "." not in name]
    raise ValueError(f"path: expected a layer of {_bare_name(module)}, such as {', '.join(near)}, found {path!r}")


def _bare_name(module: nn.Module) -> str:
    inner = next((child for name, child in module.named_children() if name in WRAPPERS), None)
    return type(module).__name__ if inner is None else _bare_name(inner)


def parallel_around(module: nn.Module, layer: nn.Module) -> nn.DataParallel[Any] | None:
    """The nn.DataParallel that makes replicas of the layer."""
    found = (part for part in module.modules() if isinstance(part, nn.DataParallel))
    return next((part for part in found if any(inner is layer for inner in part.modules())), None)
