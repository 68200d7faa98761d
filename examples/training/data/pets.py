"""Oxford-IIIT Pet: pets before backgrounds; torchvision downloads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from brpg_lib.examples.training.data.augment import IGNORE_INDEX
from brpg_lib.examples.training.data.batches import SegmentationData
from brpg_lib.examples.training.data.folder import reduction
from brpg_lib.examples.training.data.judgement import judged
from brpg_lib.examples.training.data.pairs import Pair, PairDataset

CLASS_NAMES = ("cat", "dog", "background")
FOREGROUND, BACKGROUND = 1, 2
LABELED_SHARE = 1 / 16


def load_pets(
    root: Path,
    seed: int,
    short_side: int | None = None,
    all_labels: bool = False,
    labeled_share: float = LABELED_SHARE,
) -> SegmentationData:
    """The published split into training and test images; a share of the training images keeps its labels.

    Args:
        root: Where it is, or will be downloaded to.
        seed: Which training images are the labeled ones.
        short_side: Larger images are reduced so that their short side has this many pixels; None leaves them.
        all_labels: Whether the others keep theirs too.
        labeled_share: How many do otherwise.

    Raises:
        ValueError: It is not there, and cannot be downloaded.
    """
    download(root)
    base = root / "oxford-iiit-pet"
    species = {
        fields[0]: int(fields[2]) - 1 for line in lines(base / "annotations" / "list.txt") if (fields := line.split())
    }

    def decode(values: np.ndarray, path: Path) -> np.ndarray:
        """The animal's species inside its outline; the outline itself is ignored."""
        labels = np.full(values.shape, IGNORE_INDEX, np.int64)
        labels[values == FOREGROUND] = species[path.stem]
        labels[values == BACKGROUND] = CLASS_NAMES.index("background")
        return labels

    def pairs(names: list[str], labels: bool) -> list[Pair]:
        files = [(base / "images" / f"{n}.jpg", base / "annotations" / "trimaps" / f"{n}.png") for n in names]
        return [Pair(image, label if labels else None) for image, label in files]

    train, test = (
        [line.split()[0] for line in lines(base / "annotations" / name)] for name in ("trainval.txt", "test.txt")
    )
    order = [train[i] for i in np.random.default_rng(seed).permutation(len(train))]
    count = max(1, round(labeled_share * len(order)))
    labeled, unlabeled, tested = (
        PairDataset(pairs(names, labels), len(CLASS_NAMES), short_side, decode)
        for names, labels in ((order if all_labels else order[:count], True), (order[count:], False), (test, True))
    )
    masks = judged(base, labeled, tested, CLASS_NAMES)
    return SegmentationData(
        labeled=labeled,
        unlabeled=unlabeled,
        test=tested,
        class_names=CLASS_NAMES,
        flip=True,
        scale=(0.5, 2.0),
        description=f"Oxford-IIIT Pet, {count} of {len(order)} training images labeled (seed {seed})"
        + reduction(short_side),
        masks=masks,
    )


def lines(path: Path) -> list[str]:
    """Lines that are no comments."""
    return [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]


def download(root: Path) -> None:
    """Get it, unless it is there.

    Raises:
        ValueError: It cannot be had.
    """
    if (root / "oxford-iiit-pet" / "annotations" / "list.txt").is_file():
        return
    from torchvision.datasets import OxfordIIITPet

    try:
        OxfordIIITPet(str(root), target_types="segmentation", download=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{root}: Oxford-IIIT Pet is not there and could not be downloaded ({error}); unpack images.tar.gz and "
            f"annotations.tar.gz in {root / 'oxford-iiit-pet'}"
        ) from error
