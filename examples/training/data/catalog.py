"""Every dataset by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from brpg_lib.examples.training.data.batches import SegmentationData
from brpg_lib.examples.training.data.camvid import load_camvid
from brpg_lib.examples.training.data.digits import load_scenes
from brpg_lib.examples.training.data.encoding import Encoding
from brpg_lib.examples.training.data.folder import load_folder
from brpg_lib.examples.training.data.layouts import LAYOUTS
from brpg_lib.examples.training.data.pets import load_pets

DATASETS = ("digits", "camvid", "folder", "pets", *LAYOUTS)
PARTITION = "1_8_seed0"  # of CamVid, where none is named


def open_data(
    name: str,
    *,
    root: str | None,
    split: str | None,
    num_classes: int | None,
    size: int,
    seed: int,
    short_side: int | None,
    all_labels: bool = False,
    class_names: Sequence[str] | None = None,
    encoding: Encoding | None = None,
) -> SegmentationData:
    """A dataset, with the files of its labels looked into.

    Args:
        name: One of :data:`DATASETS`.
        root: Directory of the images (all but digits).
        split: Partition: its name (camvid), or the directory of its lists (voc, voc_blended, cityscapes, coco).
        num_classes: Number of classes (folder).
        size: Side of the scenes (digits).
        seed: Of the scenes (digits), or of which images are labeled where no list says so (folder, pets).
        short_side: Larger images are reduced so that their short side has this many pixels; None leaves them.
        all_labels: Whether the unlabeled images count as labeled too, for the upper line that a training can reach.
        class_names: One per class (folder).
        encoding: What the values of the label images mean, where they are not class indices (folder).

    Raises:
        ValueError: Something is missing or wrong; the message says what.
    """
    if name not in DATASETS:
        raise ValueError(f"data: expected one of {', '.join(DATASETS)}, found {name!r}")
    if split is not None and name not in (*LAYOUTS, "camvid"):
        raise ValueError(f"split: {name} has no partitions to choose from; expected none, found {split!r}")
    if num_classes is not None and name != "folder":
        raise ValueError(f"num_classes: known for {name}; expected none, found {num_classes}")
    if (class_names or encoding) and name != "folder":
        raise ValueError(f"class_names, mask_values, palette: known for {name}; expected none")
    if name == "digits":
        return load_scenes(size, seed, all_labels)
    if root is None:
        raise ValueError(f"{name} needs root (--root), the directory of the dataset")
    directory = Path(root).expanduser()
    if name == "pets":  # which may not be there yet
        return load_pets(directory, seed, short_side, all_labels)
    if not directory.is_dir():
        raise ValueError(f"root: no such directory: {directory}")
    if name == "camvid":
        return load_camvid(directory, split or PARTITION, short_side, all_labels)
    if name in LAYOUTS:
        if split is None:
            raise ValueError(f"{name} needs split (--split), a directory with labeled.txt and unlabeled.txt")
        lists = Path(split).expanduser()
        beside = [path for path in (lists / "val.txt", lists.parent / "val.txt") if path.is_file()]
        return LAYOUTS[name].load(directory, lists, beside[0] if beside else None, short_side, all_labels)
    if num_classes is None or num_classes < 2:
        raise ValueError(f"folder needs num_classes (--num-classes), at least 2; found {num_classes}")
    return load_folder(directory, num_classes, seed, short_side, all_labels, class_names, encoding)
