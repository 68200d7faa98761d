"""Files with the plug-in's state, beside the script's checkpoints."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from brpg_lib.files import written_beside


def write_state(state: dict[str, Any], checkpoint: str | os.PathLike[str], epoch: int) -> None:
    """Write a state beside a checkpoint, and keep the one before it; each file appears whole or not at all."""
    current, previous = _beside(checkpoint)
    current.parent.mkdir(parents=True, exist_ok=True)
    partial = written_beside(current, lambda file: torch.save({"epoch": int(epoch), "plugin": state}, file))
    if _epoch(current) not in (None, epoch):  # the same: left by a killed run
        os.replace(current, previous)
    os.replace(partial, current)


def states_beside(checkpoint: str | os.PathLike[str]) -> dict[Path, int | None]:
    """The files of a checkpoint that are there, with their epochs; ``None`` for a damaged one."""
    return {file: _epoch(file) for file in _beside(checkpoint) if file.exists()}


def read_state(file: Path) -> dict[str, Any]:
    """The state in a file."""
    state: dict[str, Any] = _read(file)["plugin"]
    return state


def _beside(checkpoint: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Files for the present and the previous state."""
    path = Path(checkpoint)
    return path.with_suffix(".brpg.pth"), path.with_suffix(".brpg.previous.pth")


def _read(file: Path, *, mmap: bool = False) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    return state


def _epoch(file: Path) -> int | None:
    """The epoch of a state file; None if it is none, or damaged."""
    try:
        epoch: int = _read(file, mmap=True)["epoch"]
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError):
        return None
    return epoch
