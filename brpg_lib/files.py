"""Writing files that are there whole or not at all, whenever the power fails."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def written_beside(value: object, path: Path) -> Path:
    """Write ``value`` to a file beside ``path``, to the disk; the caller lets it take its place by ``os.replace``."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())
    return partial


def save_atomically(value: object, path: str | os.PathLike[str]) -> None:
    """``torch.save`` that leaves the old file or the new one, whole, wherever it is interrupted.

    Args:
        value: What to save.
        path: Where; its directory must exist.
    """
    os.replace(written_beside(value, Path(path)), path)
