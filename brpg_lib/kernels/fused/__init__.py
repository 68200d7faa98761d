"""The steps of a head on CUDA in few launches: Triton kernels for what plain torch does in many small operations.

Each function here computes what a plain one does, to rounding; that one is named in its docstring, and runs wherever
these cannot.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch

from brpg_lib.kernels.lloyd import installed
from brpg_lib.kernels.optional import works

MAX_DIM, MAX_SLOTS, MAX_TILE = 1024, 4096, 16384
"""What one program holds, each number as a power of two: channels; prototypes; channels of a class's prototypes."""


def kernels_for(device: torch.device, dim: int = 1, num_classes: int = 1, slots: int = 1) -> ModuleType | None:
    """The functions, where they can run; None where plain torch has to.

    Args:
        device: Of the features.
        dim: Channels D.
        num_classes: Number of classes C.
        slots: Prototypes of a class, of both groups.
    """
    if device.type != "cuda" or torch.compiler.is_compiling():  # what is compiled is fused anyway
        return None
    if torch.are_deterministic_algorithms_enabled():  # gradients of maps are added up in any order
        return None
    classes, own, width = _power(num_classes), _power(slots), _power(dim)
    fits = dim <= MAX_DIM and classes * own <= MAX_SLOTS and width * own <= MAX_TILE
    return load() if fits and _works(device) else None


def load() -> ModuleType:
    """The functions, imported when they are first used."""
    return importlib.import_module("brpg_lib.kernels.fused.steps")


@cache
def _works(device: torch.device) -> bool:
    """Whether they run on a device; warns where they fail. Tried, and compiled, in the first step."""
    return installed("triton") and works("triton", lambda: load().rehearse(device), f" on {device}")


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()
