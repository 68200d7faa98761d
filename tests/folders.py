"""Small folders of images and masks that nobody has prepared for a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 40
COLORS = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
LOOKS = np.array([[30, 90, 30], [200, 60, 60], [60, 60, 200]])


def classes_of(index: int, count: int) -> np.ndarray:
    """A disk of some class on a background of class 0, ``(SIDE, SIDE)`` uint8."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[:SIDE, :SIDE]
    inside = (y - rng.integers(12, 28)) ** 2 + (x - rng.integers(12, 28)) ** 2 < rng.integers(6, 12) ** 2
    return (inside * (1 + index % (count - 1))).astype(np.uint8)


def folder(root: Path, kind: str = "indices", images: int = 16) -> Path:
    """images/ and labels/.

    Args:
        root: Where.
        kind: What the masks hold: ``"indices"`` 0..2, ``"from_one"`` 1..3, ``"binary"`` 0 and 255, ``"gray"`` the same
            saved with three channels, or ``"colors"``.
        images: How many.
    """
    count = 2 if kind in ("binary", "gray") else 3
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for index in range(images):
        classes = classes_of(index, count)
        noise = np.random.default_rng(index).normal(0, 12, (SIDE, SIDE, 3))
        Image.fromarray((LOOKS[classes] + noise).clip(0, 255).astype(np.uint8)).save(root / f"images/i{index:02}.png")
        masks = {
            "indices": classes,
            "from_one": classes + 1,
            "binary": classes * 255,
            "gray": np.repeat(classes[..., None] * 255, 3, axis=2),
            "colors": COLORS[classes],
        }
        write_mask(root, f"i{index:02}", masks[kind])
    return root


def write_mask(root: Path, name: str, values: np.ndarray) -> None:
    Image.fromarray(values.astype(np.uint8)).save(root / f"labels/{name}.png")


def damage(path: Path) -> Path:
    """Leaves half of a file, as an interrupted copy does."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def write_list(root: Path, name: str, *names: str) -> None:
    (root / f"{name}.txt").write_text("\n".join(names) + "\n")
