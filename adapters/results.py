"""What a patched script scored, epoch by epoch, in a file that ``brpg compare`` reads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brpg_lib.files import write_atomically

RESULT = "brpg_result.json"
PLACES = ("exp_path", "save_path", "saver", "data_root", "root_path", "exp")
"""Settings that say where things lie, which a pair of trainings need not share."""


def record(
    folder: str | os.PathLike[str],
    epoch: int,
    score: float,
    iou: Mapping[str, float],
    about: Mapping[str, Any],
    measure: str = "miou",
) -> None:
    """Add an epoch's scores; those of the same epoch or later ones are of a training that was cut off, and go.

    Args:
        folder: Where the script saves.
        epoch: The script's count.
        score: Of the validation, in the script's scale.
        iou: Of each class, in the same scale; may be empty.
        about: What the training is, written beside the scores.
        measure: What ``score`` is: ``"miou"`` or ``"dice"``.
    """
    path = Path(folder) / RESULT
    before = json.loads(path.read_text())["validations"] if path.is_file() else []
    kept = [validation for validation in before if validation["epoch"] < epoch]
    scores = {"epoch": int(epoch), measure: float(score), "iou": {name: float(value) for name, value in iou.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {**about, "validations": [*kept, scores]}
    write_atomically(json.dumps(found, indent=2, default=str) + "\n", path)


def settings_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A script's settings without the section of the head and without places."""
    kept = {name: value for name, value in settings.items() if name not in ("brpg", *PLACES)}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain
