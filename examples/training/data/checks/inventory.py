"""Which layout a directory has, and which files lie in it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from brpg_lib.examples.training.data.folder import IMAGE_SUFFIXES
from brpg_lib.examples.training.data.layouts import LAYOUTS

MASK_SUFFIX = ".png"
SAMPLED = 100
"""Masks whose names are compared with those of all images."""
PETS = "oxford-iiit-pet"
USUAL_IMAGES = ("imgs", "img", "image", "Images", "JPEGImages", "frames", "rgb")
USUAL_MASKS = ("masks", "mask", "Masks", "Labels", "label", "annotations", "SegmentationClass", "gt", "targets")
"""What the two directories of a folder are called elsewhere."""


@dataclass
class Files:
    """Images and label images by the name that joins them.

    Attributes:
        images: Path of each image.
        masks: Path of each label image.
        same_name: Images whose name another one has too, and which nobody would ever read.
        others: Files beside the label images with another suffix.
    """

    images: dict[str, Path]
    masks: dict[str, Path]
    same_name: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


def layouts_of(root: Path) -> list[str]:
    """Names of the layouts that a directory has, the most special first."""
    found = [name for name, layout in LAYOUTS.items() if all((root / part).is_dir() for part in layout.directories)]
    if (root / PETS / "annotations" / "trimaps").is_dir():
        found.append("pets")
    if all((root / part).is_dir() for part in ("images", "labels")):
        if list((root / "splits").glob("*_labeled.txt")):
            found.append("camvid")
        found.append("folder")
    return found


def renaming(root: Path) -> list[str]:
    """Commands that make the layout of a folder of what has it under other names; empty if nothing comes to mind."""
    said = []
    for own, usual in (("images", USUAL_IMAGES), ("labels", USUAL_MASKS)):
        if (root / own).is_dir():
            continue
        found = [name for name in usual if (root / name).is_dir()]
        if not found:
            return []
        said.append(shlex.join(["mv", str(root / found[0]), str(root / own)]))
    return said


def files_of(root: Path, layout: str) -> Files:
    """The files of a directory with one of :func:`layouts_of`."""
    if layout == "cityscapes":
        return _cityscapes(root)
    if layout == "pets":
        base = root / PETS
        return _files([base / "images"], base / "annotations" / "trimaps")
    if layout == "coco":
        return _files([root / "train2017", root / "val2017"], root / "masks")
    if layout in LAYOUTS:
        images, masks = LAYOUTS[layout].directories
        return _files([root / images], root / masks)
    return _files([root / "images"], root / "labels")


def affix_of(files: Files) -> tuple[str, str] | None:
    """What the names of all masks have before and after that of an image, if none has an image's name itself."""
    if not files.masks or files.images.keys() & files.masks.keys():
        return None
    found: Counter[tuple[str, str]] = Counter()
    for mask in list(files.masks)[:SAMPLED]:
        for name in files.images:
            if name in mask:
                before, _, after = mask.partition(name)
                found[before, after] += 1
    for (before, after), _ in found.most_common():
        inner = (mask.removeprefix(before).removesuffix(after) for mask in files.masks)
        if all(name in files.images and f"{before}{name}{after}" in files.masks for name in inner):
            return before, after
    return None


def _files(folders: Iterable[Path], masks: Path) -> Files:
    found = Files({}, {})
    for folder in folders:
        for path in _in(folder):
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            if path.stem in found.images:
                found.same_name.append(found.images[path.stem])
            found.images[path.stem] = path
    for path in _in(masks):
        if path.suffix == MASK_SUFFIX:
            found.masks[path.stem] = path
        elif path.is_file():
            found.others.append(path)
    return found


def _cityscapes(root: Path) -> Files:
    def named(folder: str, suffix: str) -> dict[str, Path]:
        key: Callable[[Path], str] = lambda path: str(path.relative_to(root / folder)).removesuffix(suffix)  # noqa: E731
        return {key(path): path for path in sorted((root / folder).glob(f"*/*/*{suffix}"))}

    masks = named("gtFine", "_gtFine_labelIds.png") | named("gtFine", "_gtFine_labelTrainIds.png")
    return Files(named("leftImg8bit", "_leftImg8bit.png"), masks)


def _in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
