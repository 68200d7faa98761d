"""Any directory with images/ and labels/ (one class index per pixel)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from brpg_lib.examples.training.data.batches import SegmentationData
from brpg_lib.examples.training.data.lists import lines_of
from brpg_lib.examples.training.data.pairs import Pair, PairDataset

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
VAL_SHARE, LABELED_SHARE = 0.2, 0.25


def label_path(root: Path, name: str) -> Path:
    """Where the label of an image is."""
    return root / "labels" / f"{name}.png"


def find_images(root: Path) -> dict[str, Path]:
    """Image files of a directory by name."""
    for directory in (root, root / "images", root / "labels"):
        if not directory.is_dir():
            raise ValueError(f"{directory}: no such directory; expected images/ and labels/ in {root}")
    found = {p.stem: p for p in sorted((root / "images").iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES}
    if not found:
        raise ValueError(f"{root / 'images'}: no images ({', '.join(IMAGE_SUFFIXES)})")
    return found


def read_names(path: Path) -> list[str]:
    """Names listed in a text file, one per line; suffixes are dropped."""
    return [Path(line).stem for line in lines_of(path)]


def load_folder(
    root: Path, num_classes: int, seed: int, short_side: int | None = None, all_labels: bool = False
) -> SegmentationData:
    """Reads labeled.txt, unlabeled.txt and val.txt where they exist, and splits the rest by seed where not."""
    labels_exist = [name for name in find_images(root) if label_path(root, name).is_file()]
    order = [labels_exist[i] for i in np.random.default_rng(seed).permutation(len(labels_exist))]
    notes = []

    if (root / "val.txt").is_file():
        val = read_names(root / "val.txt")
    else:
        val = order[: max(1, round(VAL_SHARE * len(order)))]
        notes.append(f"no val.txt: {len(val)} test images drawn by seed {seed}")
    rest = [name for name in order if name not in set(val)]
    if (root / "labeled.txt").is_file():
        labeled = read_names(root / "labeled.txt")
    else:
        listed = set(read_names(root / "unlabeled.txt")) if (root / "unlabeled.txt").is_file() else set()
        candidates = [name for name in rest if name not in listed]
        labeled = candidates if listed else candidates[: max(1, round(LABELED_SHARE * len(rest)))]
        notes.append(f"no labeled.txt: {len(labeled)} labeled images drawn by seed {seed}")
    if (root / "unlabeled.txt").is_file():
        unlabeled = read_names(root / "unlabeled.txt")
    else:
        known = set(val) | set(labeled)
        unlabeled = [name for name in find_images(root) if name not in known]
        notes.append(f"no unlabeled.txt: the other {len(unlabeled)} images are unlabeled")
    if set(val) & (set(labeled) | set(unlabeled)):
        name = sorted(set(val) & (set(labeled) | set(unlabeled)))[0]
        raise ValueError(f"{root}: {name} is listed for training and in val.txt")
    if not (labeled and unlabeled and val):
        raise ValueError(
            f"{root}: expected labeled, unlabeled and test images, "
            f"found {len(labeled)}, {len(unlabeled)} and {len(val)}"
        )
    names = tuple(f"class {c}" for c in range(num_classes))
    description = "; ".join([f"folder {root.name}", *notes])
    return assemble(root, (labeled, unlabeled, val), names, short_side, description, all_labels)


def assemble(
    root: Path,
    lists: tuple[list[str], list[str], list[str]],
    class_names: tuple[str, ...],
    short_side: int | None,
    description: str,
    all_labels: bool = False,
) -> SegmentationData:
    """Datasets of the labeled, unlabeled and test names, checked."""
    images = find_images(root)
    if all_labels:
        lists = (lists[0] + lists[1], lists[1], lists[2])
    for name in {name for names in lists for name in names} - images.keys():
        raise ValueError(f"{root / 'images'}: no image named {name} ({', '.join(IMAGE_SUFFIXES)})")
    labeled, unlabeled, test = (
        PairDataset(
            [Pair(images[name], None if index == 1 else label_path(root, name)) for name in names],
            len(class_names),
            short_side,
        )
        for index, names in enumerate(lists)
    )
    labeled.check()
    test.check()
    return SegmentationData(
        labeled=labeled,
        unlabeled=unlabeled,
        test=test,
        class_names=class_names,
        flip=True,
        scale=(0.75, 1.5),
        description=description + reduction(short_side),
    )


def reduction(short_side: int | None) -> str:
    """What a description says about the size of the images."""
    return "" if short_side is None else f"; images reduced to a short side of {short_side} pixels"
