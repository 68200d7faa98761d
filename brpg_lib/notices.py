"""Warnings that point at the user's own line."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

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

    def warn(self, name: str, text: str) -> None:
        """Warn with ``text``, unless a warning of that name was given already."""
        if name not in self._given:
            self._given.add(name)
            warn(text)
