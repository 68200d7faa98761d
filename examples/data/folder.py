"""Any directory with images/ and labels/ (one class index per pixel)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from brpg_lib.examples.data.augment import IGNORE_INDEX
from brpg_lib.examples.data.batches import SegmentationData

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
MARGIN = 1.4  # short side of the reduced images, in crops
VAL_SHARE, LABELED_SHARE = 0.2, 0.25


class FolderDataset(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of ``images/NAME.jpg`` (or .png, .bmp) and ``labels/NAME.png``, reduced and kept in memory.

    Args:
        root: Directory that holds ``images/`` and ``labels/``.
        names: File names without suffix.
        num_classes: C; labels are 0..C-1, or 255 where ignored.
        short_side: Images are reduced so that their short side has this many pixels.
        labeled: Whether labels are read (and must exist); otherwise they are all 0.
    """

    def __init__(
        self, root: Path, names: Sequence[str], num_classes: int, short_side: int, labeled: bool = True
    ) -> None:
        images = find_images(root)
        for name in names:
            if name not in images:
                raise ValueError(f"{root / 'images'}: no image named {name} ({', '.join(IMAGE_SUFFIXES)})")
            if labeled and not label_path(root, name).is_file():
                raise ValueError(f"{label_path(root, name)}: missing; every labeled and test image needs a label")
        self.root, self.names, self.num_classes = root, list(names), num_classes
        self.short_side, self.labeled = short_side, labeled
        self._images = [images[name] for name in names]
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image ``(3, H, W)`` uint8 and label ``(H, W)`` int64."""
        if index not in self._pairs:
            self._pairs[index] = self._read(index)
        image, label = self._pairs[index]
        return image, label.long()

    def check(self) -> None:
        """Reads every pair, so that a bad file is told of before the training starts."""
        for index in range(len(self)):
            self[index]

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        path = self._images[index]
        try:
            image = Image.open(path).convert("RGB")
        except OSError as error:
            raise ValueError(f"{path}: not a readable image ({error})") from error
        factor = min(1.0, self.short_side / min(image.size))
        size = (round(image.width * factor), round(image.height * factor))
        pixels = torch.from_numpy(np.array(image.resize(size, Image.Resampling.BILINEAR))).permute(2, 0, 1)
        if not self.labeled:
            return pixels.contiguous(), torch.zeros(size[::-1], dtype=torch.uint8)
        label = read_label(label_path(self.root, self.names[index]), self.num_classes)
        if label.size != image.size:
            raise ValueError(
                f"{label_path(self.root, self.names[index])}: expected the size of {path.name}, "
                f"{image.width}x{image.height}, found {label.width}x{label.height}"
            )
        reduced = np.array(label.resize(size, Image.Resampling.NEAREST))
        return pixels.contiguous(), torch.from_numpy(reduced)


def label_path(root: Path, name: str) -> Path:
    """Where the label of an image is."""
    return root / "labels" / f"{name}.png"


def read_label(path: Path, num_classes: int) -> Image.Image:
    """A checked label image of mode L: 0..C-1 or 255."""
    try:
        label = Image.open(path)
        label.load()
    except OSError as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error
    values = np.array(label)
    if values.ndim != 2:
        raise ValueError(
            f"{path}: expected one class index per pixel (a grayscale or palette PNG), found colors (mode {label.mode})"
        )
    values = values.astype(np.int64)
    wrong = values[(values >= num_classes) & (values != IGNORE_INDEX) | (values < 0)]
    if wrong.size:
        raise ValueError(
            f"{path}: expected labels 0..{num_classes - 1} or {IGNORE_INDEX} (ignored), found {int(wrong[0])} "
            f"in {wrong.size} pixels"
        )
    return Image.fromarray(values.astype(np.uint8))


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
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    names = [Path(line.strip()).stem for line in path.read_text().splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{path}: lists no images")
    return names


def load_folder(root: Path, num_classes: int, crop: int, seed: int) -> SegmentationData:
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
    return assemble(root, (labeled, unlabeled, val), names, crop, "; ".join([f"folder {root.name}", *notes]))


def assemble(
    root: Path, lists: tuple[list[str], list[str], list[str]], class_names: tuple[str, ...], crop: int, description: str
) -> SegmentationData:
    """Datasets of the labeled, unlabeled and test names, checked."""
    short_side = round(MARGIN * crop)
    labeled, unlabeled, test = (
        FolderDataset(root, names, len(class_names), short_side, labeled=index != 1)
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
        description=f"{description}; images reduced to a short side of {short_side} pixels",
    )
