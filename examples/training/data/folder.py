"""Any directory with images/ and labels/ (one class index per pixel)."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from brpg_lib.examples.training.data.batches import SegmentationData
from brpg_lib.examples.training.data.encoding import Encoding
from brpg_lib.examples.training.data.judgement import judged
from brpg_lib.examples.training.data.lists import lines_of
from brpg_lib.examples.training.data.masks import in_threads, size_of
from brpg_lib.examples.training.data.pairs import Pair, PairDataset, spread

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
LISTS = ("labeled", "unlabeled", "val")
CLASSES = "classes.txt"
VAL_SHARE, LABELED_SHARE = 0.2, 0.25
SMALLEST_CROP, LARGEST_CROP, STRIDE = 33, 257, 16
REDUCED = 1.4
"""Short side of reduced images, in crops."""


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


class Lists(NamedTuple):
    """Names of the images of a folder.

    Attributes:
        labeled: To learn from.
        unlabeled: To learn from without their labels.
        val: To test on.
        notes: What was drawn, in words.
    """

    labeled: list[str]
    unlabeled: list[str]
    val: list[str]
    notes: list[str]


def listed(root: Path) -> dict[str, list[str]]:
    """Names in labeled.txt, unlabeled.txt and val.txt, as far as these exist."""
    paths = {name: root / f"{name}.txt" for name in LISTS}
    return {name: read_names(path) for name, path in paths.items() if path.is_file()}


def partition(root: Path, images: Sequence[str], with_label: Sequence[str], seed: int) -> Lists:
    """Follows the lists, and draws the rest from what no list names.

    Args:
        root: Of the folder, for its lists.
        images: Names of all images.
        with_label: Names of those with a label.
        seed: Of the draws.

    Raises:
        ValueError: An image is in lists that exclude each other, or nothing is left to draw from.
    """
    given, notes = listed(root), []
    named = {name for names in given.values() for name in names}
    order = [with_label[i] for i in np.random.default_rng(seed).permutation(len(with_label))]
    free = [name for name in order if name not in named]
    val = given.get("val")
    if val is None:
        val = free[: max(1, round(VAL_SHARE * len(free)))]
        free = free[len(val) :]
        notes.append(f"no val.txt: {len(val)} test images drawn by seed {seed}")
        if not val:
            raise ValueError(
                f"{root}: no val.txt, and every image with a label is in another list; write one, or leave some out"
            )
    labeled = given.get("labeled")
    if labeled is None:
        unlabeled_anyway = "unlabeled" in given or bool({*images} - {*with_label} - named)
        labeled = free if unlabeled_anyway else free[: max(1, round(LABELED_SHARE * len(free)))]
        left = len(free) - len(labeled)
        drawn = f" drawn by seed {seed}; the masks of {left} others are not used (labeled.txt would name them)"
        notes.append(f"no labeled.txt: {len(labeled)} labeled images" + (drawn if left else ", all others with a mask"))
    unlabeled = given.get("unlabeled")
    if unlabeled is None:
        known = {*val, *labeled}
        unlabeled = [name for name in images if name not in known]
        notes.append(f"no unlabeled.txt: the other {len(unlabeled)} images are unlabeled")
    both = sorted({*val} & {*labeled, *unlabeled})
    if both:
        raise ValueError(f"{root}: {both[0]} is listed for training and in val.txt")
    if not (labeled and unlabeled and val):
        raise ValueError(
            f"{root}: expected labeled, unlabeled and test images, "
            f"found {len(labeled)}, {len(unlabeled)} and {len(val)}"
        )
    return Lists(labeled, unlabeled, val, notes)


def class_names_in(root: Path) -> list[str]:
    """Names of the classes, one a line, in classes.txt; empty without it.

    Raises:
        ValueError: It names a class twice.
    """
    path = root / CLASSES
    if not path.is_file():
        return []
    names = lines_of(path)
    twice = sorted(name for name, number in Counter(names).items() if number > 1)
    if twice:
        raise ValueError(f"{path}: {twice[0]} is named twice")
    return names


def fitting_size(root: Path, short_side: int | None) -> tuple[int, int | None]:
    """Crops that fit the images, and the short side that larger ones are reduced to; None leaves them as they are.

    Args:
        root: Of the folder.
        short_side: What images are reduced to in any case.

    Raises:
        ValueError: There are no images, or one is not readable.
    """
    sides = [min(size) for size in in_threads(size_of, spread(list(find_images(root).values())))]
    usual = round(statistics.median(sides))
    size, reduced = crop_for(usual if short_side is None else min(usual, short_side))
    return size, reduced if short_side is None else short_side


def crop_for(side: int) -> tuple[int, int | None]:
    """Side of the crops for images with this short side, and what larger ones are reduced to.

    >>> crop_for(72), crop_for(360), crop_for(1080)
    ((65, None), (257, None), (257, 360))
    """
    size = min(LARGEST_CROP, max(SMALLEST_CROP, STRIDE * ((side - 1) // STRIDE) + 1))
    reduced = round(REDUCED * size)
    return size, reduced if side > reduced else None


def load_folder(
    root: Path,
    num_classes: int,
    seed: int,
    short_side: int | None = None,
    all_labels: bool = False,
    class_names: Sequence[str] | None = None,
    encoding: Encoding | None = None,
) -> SegmentationData:
    """Reads labeled.txt, unlabeled.txt and val.txt where they exist, and splits the rest by seed where not.

    Args:
        root: Directory with images/ and labels/.
        num_classes: C.
        seed: Of the draws.
        short_side: Larger images are reduced so that their short side has this many pixels; None leaves them.
        all_labels: Whether the unlabeled images count as labeled too.
        class_names: One per class; None to number them.
        encoding: What the values of the label images mean; None where they are class indices.

    Raises:
        ValueError: Something is missing or wrong; the message says what to do.
    """
    images = list(find_images(root))
    lists = partition(root, images, [name for name in images if label_path(root, name).is_file()], seed)
    names = tuple(class_names or (f"class {c}" for c in range(num_classes)))
    description = "; ".join([f"folder {root.name}", *lists.notes])
    return assemble(root, lists[:3], names, short_side, description, all_labels, encoding)


def assemble(
    root: Path,
    lists: tuple[list[str], list[str], list[str]],
    class_names: tuple[str, ...],
    short_side: int | None,
    description: str,
    all_labels: bool = False,
    encoding: Encoding | None = None,
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
            encoding,
        )
        for index, names in enumerate(lists)
    )
    masks = judged(root, labeled, test, class_names)
    unlabeled.check()
    return SegmentationData(
        labeled=labeled,
        unlabeled=unlabeled,
        test=test,
        class_names=class_names,
        flip=True,
        scale=(0.75, 1.5),
        description=description + reduction(short_side),
        masks=masks,
        colors=encoding.class_colors if encoding else (),
    )


def reduction(short_side: int | None) -> str:
    """What a description says about the size of the images."""
    return "" if short_side is None else f"; images reduced to a short side of {short_side} pixels"
