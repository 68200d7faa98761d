"""Small directories of made-up images in the layouts of the published datasets, each with a partition in split/."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (36, 48)


def write_image(path: Path, values: np.ndarray | None = None, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if values is None:
        values = np.random.default_rng(len(str(path))).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    if palette:
        image = image.convert("P")
        image.putpalette([i for color in range(256) for i in (color, 255 - color, 7)])
        image.putdata(values.flatten().tolist())
    image.save(path)


def write_lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def labels(*values: int) -> np.ndarray:
    """The values in stripes, then ignored pixels."""
    found = np.full(SIZE, 255, np.uint8)
    for index, value in enumerate(values):
        found[:, 2 * index : 2 * index + 2] = value
    return found


def voc_tree(folder: Path) -> Path:
    root = folder / "VOC2012"
    for index in range(4):
        write_image(root / f"JPEGImages/2007_{index}.jpg")
        write_image(root / f"SegmentationClass/2007_{index}.png", labels(0, 15, 20), palette=True)
        write_image(root / f"SegmentationClassAug/2007_{index}.png", labels(0, 15, 20))
    write_lines(root / "ImageSets/Segmentation/val.txt", "2007_3")
    write_lines(folder / "split/labeled.txt", "2007_0")
    write_lines(folder / "split/unlabeled.txt", "2007_1", "2007_2")
    return root


def cityscapes_tree(folder: Path) -> Path:
    root = folder / "cityscapes"
    for part, name in (("train/aachen", "aachen_0"), ("train/aachen", "aachen_1"), ("val/lindau", "lindau_0")):
        write_image(root / f"leftImg8bit/{part}/{name}_leftImg8bit.png")
        write_image(root / f"gtFine/{part}/{name}_gtFine_labelIds.png", labels(7, 26, 33, 0, 5))
    first = "leftImg8bit/train/aachen/aachen_0_leftImg8bit.png", "gtFine/train/aachen/aachen_0_gtFine_labelTrainIds.png"
    write_lines(folder / "split/labeled.txt", " ".join(first))
    write_lines(folder / "split/unlabeled.txt", "leftImg8bit/train/aachen/aachen_1_leftImg8bit.png")
    write_lines(folder / "split/val.txt", "val/lindau/lindau_0")
    return root


def coco_tree(folder: Path) -> Path:
    root = folder / "coco"
    for kind, name in (("train2017", "1"), ("train2017", "2"), ("val2017", "3")):
        write_image(root / f"{kind}/{name}.jpg")
        write_image(root / f"masks/{name}.png", labels(0, 1, 80))
    write_lines(folder / "split/labeled.txt", "train2017/1.jpg masks/1.png")
    write_lines(folder / "split/unlabeled.txt", "train2017/2.jpg masks/2.png")
    write_lines(folder / "split/val.txt", "val2017/3.jpg masks/3.png")
    return root
