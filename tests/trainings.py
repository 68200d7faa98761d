"""Made-up results of trainings with a known difference, in every form that ``brpg compare`` reads."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brpg_lib.examples.training.recipe import Recipe

GAINS = (1.0, 2.0, 3.0)  # Student's interval of their mean: [-0.48, 4.48]
CLASSES = ("background", "digit", "absent")


def result(variant: str, seed: int, miou: float, **changes: Any) -> dict[str, Any]:
    """In the shape of the accuracy benchmark."""
    options = {"framework": "u2pl", "data": "digits", "epoch_steps": 4, "size": 33, "batch_size": 2}
    return {
        "variant": variant,
        "settings": Recipe(**{**options, "seed": seed, **changes}).to_dict(),  # type: ignore[arg-type]
        "environment": {"device": "a CPU", "threads": 2, "versions": {"torch": "2.9"}},
        "seconds": 60.0,
        "peak_memory_mb": 900.0,
        "class_names": list(CLASSES),
        "miou": miou,
        "boundary_miou": miou - 2,
        "iou": [miou + 5, miou - 5, None],
        "boundary_iou": [miou, miou, None],
    }


def training(head: bool, seed: int, miou: float) -> dict[str, Any]:
    """In the shape of ``brpg train``; an earlier validation was better."""
    validation = {"miou": miou, "boundary_miou": miou - 2, "iou": {"a": miou, "b": None}, "boundary_iou": {}}
    return {
        "recipe": Recipe(data="digits", seed=seed, head={"temperature": 0.2} if head else {}).to_dict(),
        "head": head,
        "processes": 1,
        "device": "cpu",
        "validations": [{**validation, "miou": 99.0}, validation],
    }


def write(folder: Path, *results: dict[str, Any]) -> Path:
    for index, found in enumerate(results):
        path = folder / f"run{index}" / "result.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    return folder


def sides(tmp_path: Path, gains: Sequence[float] = GAINS, **changes: Any) -> tuple[Path, Path]:
    before = [result("no head", seed, 60 + seed, **changes) for seed in range(len(gains))]
    after = [result("BRPG", seed, 60 + seed + gain, **changes) for seed, gain in enumerate(gains)]
    return write(tmp_path / "without", *before), write(tmp_path / "with", *after)


def table(path: Path, rows: Sequence[Sequence[object]], heading: str = "seed,setting,variant,score") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([heading.split(","), *rows])
    return path


def confusion(seed: int, better: float, images: int = 40, classes: int = 3) -> np.ndarray:
    """Every image has a hundred pixels of each class."""
    hits = np.random.default_rng(seed).integers(40, 60, (images, classes)) + round(40 * better)
    matrices = np.zeros((images, classes, classes), dtype=np.int64)
    for index in range(classes):
        matrices[:, index, index] = hits[:, index]
        matrices[:, index, (index + 1) % classes] = 100 - hits[:, index]
    return matrices


def counts(path: Path, matrices: np.ndarray, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, confusion=matrices, **more)
    return path
