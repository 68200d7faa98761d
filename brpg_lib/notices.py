"""What a user is told of: at the own line, once, and without waiting for the device."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brpg_lib.late import LateCopy

INSIDE = tuple(str(Path(module).parent) for module in (__file__, torch.__file__))
"""Code between the user's call and the place that warns: this library's, and the module call of torch's."""


def warn(text: str) -> None:
    """Warn at the innermost line of the stack that is neither this library's nor torch's."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, UserWarning, stacklevel=level)


class OneTimeWarnings:
    """Warns of each thing once."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def is_new(self, name: str) -> bool:
        """Whether no warning of that name was given yet."""
        return name not in self._given

    def warn(self, name: str, text: str) -> None:
        """Warn with ``text``, unless a warning of that name was given already."""
        if self.is_new(name):
            self._given.add(name)
            warn(text)


class LateReader:
    """Reads small tensors without waiting for their device.

    On the CPU each call gives the values back at once. On CUDA every :data:`EVERY`-th call begins a copy into host
    memory and gives back the copy begun so many calls before, so that all ranks read the same values in the same step.
    In between, under ``torch.compile`` and while a CUDA graph is captured, there is nothing to read.
    """

    EVERY = 49
    """An odd number: of trainings that alternate between two kinds of steps both are looked at."""

    def __init__(self) -> None:
        self._calls = 0
        self._copy: LateCopy | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle starts anew: events belong to one process."""
        return {"_calls": 0, "_copy": None}

    def steps(self, device: torch.device) -> int:
        """Calls from one that gives values back to the next."""
        return 1 if device.type == "cpu" else self.EVERY

    def read(self, device: torch.device, values: Callable[[], Tensor]) -> Tensor | None:
        """Values on the CPU, perhaps of an earlier call; None where there are none to read.

        Args:
            device: Where the values lie.
            values: Makes them, where they are needed.
        """
        if torch.compiler.is_compiling():
            return None
        if device.type == "cpu":
            return values()
        if not torch.cuda.is_available() or torch.cuda.is_current_stream_capturing():
            return None
        self._calls += 1
        if self._calls % self.EVERY != 1:
            return None
        before, self._copy = self._copy, LateCopy(values())
        return None if before is None else before.value  # done long ago
