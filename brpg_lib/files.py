"""Writing files that are there whole or not at all, whenever the power fails."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

import torch


def written_beside(path: Path, write: Callable[[IO[bytes]], object]) -> Path:
    """Write a file beside ``path``, to the disk; the caller lets it take its place by ``os.replace``."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    return partial


def save_atomically(value: object, path: str | os.PathLike[str]) -> None:
    """``torch.save`` that leaves the old file or the new one, whole, wherever it is interrupted.

    Args:
        value: What to save.
        path: Where; its directory must exist.
    """
    os.replace(written_beside(Path(path), lambda file: torch.save(value, file)), path)


def write_atomically(text: str, path: str | os.PathLike[str]) -> None:
    """The same for text."""
    os.replace(written_beside(Path(path), lambda file: file.write(text.encode())), path)
