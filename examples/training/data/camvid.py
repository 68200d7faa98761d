"""CamVid, 11 classes: images/, labels/ and splits/ in a directory of yours."""

from __future__ import annotations

from pathlib import Path

from brpg_lib.examples.training.data.batches import SegmentationData
from brpg_lib.examples.training.data.folder import assemble, read_names

CLASS_NAMES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip


def load_camvid(root: Path, split: str, short_side: int | None = None, all_labels: bool = False) -> SegmentationData:
    """Reads the partition ``splits/SPLIT_labeled.txt`` and ``splits/SPLIT_unlabeled.txt``; tests on ``val.txt``."""
    splits = root / "splits"
    if not splits.is_dir():
        raise ValueError(f"{splits}: no such directory; expected images/, labels/ and splits/ in {root}")
    known = sorted(path.name.removesuffix("_labeled.txt") for path in splits.glob("*_labeled.txt"))
    if split not in known:
        raise ValueError(f"split: expected one of {', '.join(known) or '(none found)'}, found {split!r}")
    names = [read_names(splits / name) for name in (f"{split}_labeled.txt", f"{split}_unlabeled.txt", "val.txt")]
    return assemble(root, (names[0], names[1], names[2]), CLASS_NAMES, short_side, f"CamVid {split}", all_labels)
