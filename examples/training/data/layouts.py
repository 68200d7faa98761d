"""PASCAL VOC 2012, Cityscapes and COCO as they are published."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from brpg_lib.examples.training.data.augment import IGNORE_INDEX
from brpg_lib.examples.training.data.lists import Layout
from brpg_lib.examples.training.data.pairs import Pair

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table",
    "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip
CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""What the published label images hold for each class; everything else is ignored."""
COCO_CLASSES = (
    "background", "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep",
    "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip


def voc_classic(root: Path, name: str) -> Pair:
    """With the 1464 finely labeled images."""
    return Pair(root / "JPEGImages" / f"{Path(name).stem}.jpg", root / "SegmentationClass" / f"{Path(name).stem}.png")


def voc_blended(root: Path, name: str) -> Pair:
    """With the 10582 images of the Semantic Boundaries Dataset too."""
    return Pair(
        root / "JPEGImages" / f"{Path(name).stem}.jpg", root / "SegmentationClassAug" / f"{Path(name).stem}.png"
    )


def cityscapes(root: Path, name: str) -> Pair:
    """``leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png`` or ``SPLIT/CITY/NAME``; labels lie in ``gtFine/``."""
    relative = Path(name.removeprefix("leftImg8bit/").removesuffix(".png").removesuffix("_leftImg8bit"))
    label = root / "gtFine" / relative.parent / f"{relative.name}_gtFine_labelIds.png"
    train_ids = label.with_name(label.name.replace("labelIds", "labelTrainIds"))
    image = root / "leftImg8bit" / relative.parent / f"{relative.name}_leftImg8bit.png"
    return Pair(image, train_ids if train_ids.is_file() else label)


def coco(root: Path, name: str) -> Pair:
    """``train2017/NAME.jpg`` or ``val2017/NAME.jpg``; masks with one class index per pixel in ``masks/``."""
    stem = Path(name).stem
    train = root / "train2017" / f"{stem}.jpg"
    return Pair(train if train.is_file() else root / "val2017" / f"{stem}.jpg", root / "masks" / f"{stem}.png")


def to_train_ids(values: np.ndarray, path: Path) -> np.ndarray:
    """Cityscapes' train ids, from the label ids that are published, or from files that hold them already."""
    if "labelIds" not in path.name:
        return values
    table = np.full(256, IGNORE_INDEX, np.int64)
    table[list(CITYSCAPES_IDS)] = range(len(CITYSCAPES_IDS))
    ids: np.ndarray = table[values.clip(0, 255)]
    return ids


LAYOUTS = {
    "voc": Layout(
        "PASCAL VOC 2012",
        VOC_CLASSES,
        ("JPEGImages", "SegmentationClass"),
        voc_classic,
        "ImageSets/Segmentation/val.txt",
        hint="VOC's own SegmentationClass/ holds palette images: a tool that opened and saved them has made colors of "
        "the indices; unpack the archive again, or convert them with VOC's color map",
    ),
    "voc_blended": Layout(
        "PASCAL VOC 2012 with SBD",
        VOC_CLASSES,
        ("JPEGImages", "SegmentationClassAug"),
        voc_blended,
        "ImageSets/Segmentation/val.txt",
        hint="SegmentationClassAug/ must be the one with class indices (grayscale), as U2PL and UniMatch link it",
    ),
    "cityscapes": Layout(
        "Cityscapes",
        CITYSCAPES_CLASSES,
        ("leftImg8bit", "gtFine"),
        cityscapes,
        decode=to_train_ids,
        hint="take the files named labelIds or labelTrainIds, not color",
    ),
    "coco": Layout(
        "COCO 2017",
        COCO_CLASSES,
        ("train2017", "val2017", "masks"),
        coco,
        hint="masks/ must hold class indices 0..80, as UniMatch publishes them",
    ),
}
