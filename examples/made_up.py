"""Made-up images in the layouts of the data sets that training scripts read, and where a script trains on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from brpg_lib.examples.training.data.digits import CLASS_NAMES, DigitScenes

LABELED, UNLABELED, VAL = 4, 8, 2
SIDE = 66
FILES = ("JPEGImages/{0}.jpg", "SegmentationClassAug/{0}.png")
NUM_CLASSES = len(CLASS_NAMES)


@dataclass(frozen=True)
class Workspace:
    """A folder that a script can train in.

    Attributes:
        folder: Working directory.
        arguments: Arguments of the script.
        checkpoint: Where the script saves, or a folder of its own beside it that each run names anew.
    """

    folder: Path
    arguments: Sequence[str]
    checkpoint: Path


def write_images(folder: Path) -> dict[str, list[str]]:
    """Digit scenes in the layout of PASCAL VOC. Returns the names in each split."""
    for kind in FILES:
        (folder / kind).parent.mkdir(parents=True, exist_ok=True)
    names: dict[str, list[str]] = {}
    for split, count in (("labeled", LABELED), ("unlabeled", UNLABELED), ("test", VAL)):
        names[split] = [f"{split}{index}" for index in range(count)]
        for name, (image, label) in zip(names[split], DigitScenes(split, count), strict=True):
            for kind, pixels in zip(FILES, (image.permute(1, 2, 0), label), strict=True):
                picture = Image.fromarray(pixels.numpy().astype(np.uint8))
                picture.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(folder / kind.format(name))
    return names


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """A list file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def write_changes(folder: Path) -> dict[str, list[str]]:
    """Pairs of scenes before and after digits appeared, in the layout of LEVIR-CD. Returns the names in each split."""
    kinds = ("A", "B", "label")
    for kind in kinds:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    names: dict[str, list[str]] = {}
    for split, count in (("labeled", LABELED), ("unlabeled", UNLABELED), ("test", VAL)):
        names[split] = [f"{split}{index}.png" for index in range(count)]
        for name, (image, label) in zip(names[split], DigitScenes(split, count), strict=True):
            after, changed = image.permute(1, 2, 0).numpy(), label.numpy() > 0
            before = np.where(changed[..., None], after[~changed].mean(0).astype(np.uint8), after)
            for kind, pixels in zip(kinds, (before, after, changed.astype(np.uint8) * 255), strict=True):
                Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(folder / kind / name)
    return names


def write_slices(folder: Path, labeled: int, unlabeled: int, depth: int = 8) -> dict[str, list[str]]:
    """Gray slices for training and volumes for validation, in the layout of ACDC: 3 classes and a background.

    The files are written where h5py is there, without which the scripts that read them do not start.

    Args:
        folder: Gets ``data/slices/NAME.h5`` and ``data/NAME.h5``.
        labeled: Number of labeled slices.
        unlabeled: Number of others.
        depth: Slices of a volume.

    Returns:
        The names in each split, without folder and ending.
    """
    (folder / "data/slices").mkdir(parents=True, exist_ok=True)
    names = {
        "labeled": [f"patient{index:03}_slice" for index in range(labeled)],
        "unlabeled": [f"patient{labeled + index:03}_slice" for index in range(unlabeled)],
        "test": [f"volume{index}" for index in range(VAL)],
    }
    if find_spec("h5py") is None:
        return names
    for split, depths in (("labeled", 1), ("unlabeled", 1), ("test", depth)):
        scenes = iter(DigitScenes(split, len(names[split]) * depths))
        for name in names[split]:
            pairs = [next(scenes) for _ in range(depths)]
            image = np.stack([scene.float().mean(0).numpy() / 255 for scene, _ in pairs])
            label = np.stack([((digits + 2) // 3).clamp(max=3).byte().numpy() for _, digits in pairs])
            if depths == 1:
                _write_h5(folder / f"data/slices/{name}.h5", image[0], label[0])
            else:
                _write_h5(folder / f"data/{name}.h5", image, label)
    return names


def _write_h5(path: Path, image: np.ndarray, label: np.ndarray) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file["image"], file["label"] = image, label
