"""Confusion matrices of each test image, in ``.npz`` files: one per training."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brpg_lib.benchmarks.compare.bootstrap import ImageCounts
from brpg_lib.benchmarks.compare.runs import Run


def read_counts(path: Path, variant: str, seed: str) -> Run:
    """A training from the matrices of its test images.

    Args:
        path: Holds ``confusion`` ``(N, C, C)`` integers (rows: truth, columns: prediction), and may hold ``images``
            ``(N,)`` and ``class_names`` ``(C,)``.
        variant: The name of its side.
        seed: By which its partner is found.

    Raises:
        ValueError: Something is missing or of the wrong shape.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not an .npz file of plain arrays ({error})") from error
    if "confusion" not in found:
        raise ValueError(f"{path}: expected an array confusion, found {', '.join(found) or 'nothing'}")
    confusion = found["confusion"]
    if confusion.ndim != 3 or confusion.shape[1] != confusion.shape[2] or not len(confusion):
        raise ValueError(f"{path}: confusion: expected the shape (images, C, C), found {confusion.shape}")
    if confusion.dtype.kind not in "iu":
        raise ValueError(f"{path}: confusion: expected integers (pixels), found {confusion.dtype}")
    if confusion.min() < 0:
        raise ValueError(f"{path}: confusion: expected numbers of pixels, found {confusion.min()}")
    images, classes = confusion.shape[:2]
    names = _names(path, found, "class_names", classes) or [f"class {index}" for index in range(classes)]
    counts = ImageCounts.of(confusion)
    scores = counts.scores()
    if np.isnan(scores).all():
        raise ValueError(f"{path}: confusion: expected pixels of some class, found none")
    return Run(
        source=str(path),
        variant=variant,
        setting="",
        seed=seed,
        scores={"mIoU": float(np.nanmean(scores))},
        classes={name: None if np.isnan(s) else float(s) for name, s in zip(names, scores, strict=True)},
        counts=counts,
        images=tuple(_names(path, found, "images", images)),
    )


def require_same_images(before: Run, after: Run) -> None:
    """Require that two trainings were tested on the same images: names and ground truth.

    Raises:
        ValueError: They were not.
    """
    if before.counts is None or after.counts is None:
        return
    one, other = before.counts.truth, after.counts.truth
    if len(one) != len(other):
        raise ValueError(f"{after.source}: expected {len(one)} images as in {before.source}, found {len(other)}")
    if before.images != after.images and before.images and after.images:
        at = next(i for i, (a, b) in enumerate(zip(before.images, after.images, strict=True)) if a != b)
        raise ValueError(
            f"{after.source}: images[{at}]: expected {before.images[at]} as in {before.source}, "
            f"found {after.images[at]}"
        )
    if (one != other).any():
        at = int((one != other).any(1).argmax())
        name = f" ({before.images[at]})" if before.images else ""
        raise ValueError(
            f"{after.source}: confusion[{at}]{name}: expected the ground truth of {before.source}, found other row "
            "sums (another order of the images, or other labels)"
        )


def _names(path: Path, found: dict[str, NDArray[Any]], name: str, count: int) -> list[str]:
    if name not in found:
        return []
    names = [str(entry) for entry in found[name].ravel()]
    if len(names) != count or len(set(names)) != count:
        raise ValueError(f"{path}: {name}: expected {count} different names, found {len(set(names))}")
    return names
