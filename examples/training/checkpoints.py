"""What the checkpoints of all loops share: states by name, and the choices they were made with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch


def states(parts: Mapping[str, Any]) -> dict[str, Any]:
    """What each part has to remember."""
    return {name: part.state_dict() for name, part in parts.items()}


def restore(parts: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Gives each part what it had."""
    for name, part in parts.items():
        part.load_state_dict(saved[name])


def without_rows(head: Mapping[str, Any]) -> dict[str, Any]:
    """A head's state without the rows in its queues: gigabytes that only a training that goes on needs."""
    rows = ("queue.features", "queue.confidence", "queue.fallback_features", "queue.fallback_confidence")
    return {name: value for name, value in head.items() if name not in rows}


def read(path: Path, kind: str, choices: Mapping[str, Any], may_change: Collection[str] = ()) -> dict[str, Any]:
    """A checkpoint, in host memory: a GPU need not hold everything twice.

    Args:
        path: Of the file.
        kind: Under which name it holds the choices it was made with.
        choices: Those of now.
        may_change: Which of them need not be the same.

    Raises:
        ValueError: It was made with others.
    """
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    for name, value in choices.items():
        before = saved[kind].get(name)
        if before != value and name not in may_change:
            raise ValueError(
                f"{path}: cannot resume, {name} was {before!r} and is now {value!r}; "
                f"use the same {kind}, or start anew in another place"
            )
    return saved
