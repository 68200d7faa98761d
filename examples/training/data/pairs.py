"""Images and label images on disk, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from brpg_lib.examples.training.data.augment import IGNORE_INDEX
from brpg_lib.examples.training.data.encoding import Encoding
from brpg_lib.examples.training.data.masks import Decode, opened, value_names, values_of

KEEP_BYTES = 2 * 2**30
"""A dataset that needs more memory than this is read from disk each time, as any is by worker processes."""
CHECKED = 200
"""How many images are read before a training starts, if there are more."""
COUNTED = 1000
"""How many label images are looked into before a training starts, if there are more."""

Item = TypeVar("Item")


class Pair(NamedTuple):
    """Files of one image.

    Attributes:
        image: Any format that Pillow reads.
        label: One class index per pixel; None for an image without label.
    """

    image: Path
    label: Path | None


class PairDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images with their labels.

    Args:
        pairs: The files; all must exist.
        num_classes: C; labels are 0..C-1, or 255 where ignored.
        short_side: Larger images are reduced so that their short side has this many pixels; None leaves them.
        decode: From what the label images hold to class indices; None where they hold these.
        hint: What to do about label images that hold something else.

    Raises:
        ValueError: A file is missing.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        num_classes: int,
        short_side: int | None = None,
        decode: Decode | None = None,
        hint: str = "",
    ) -> None:
        for image, label in pairs:
            if not image.is_file():
                raise ValueError(f"{image}: no such image")
            if label is not None and not label.is_file():
                raise ValueError(f"{label}: missing; every labeled and test image needs a label")
        self.pairs, self.num_classes = list(pairs), num_classes
        self.short_side, self.decode, self.hint = short_side, decode, hint
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def names(self) -> list[str]:
        """File names of the images, without suffix."""
        return [pair.image.stem for pair in self.pairs]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image ``(3, H, W)`` uint8 and label ``(H, W)`` int64, 0 without label file.

        Raises:
            ValueError: A file is damaged, or holds something else than expected.
        """
        if index in self._kept:
            image, label = self._kept[index]
        else:
            image, label = self._read(self.pairs[index])
            size = image.nbytes + label.nbytes
            if size * len(self) <= KEEP_BYTES and get_worker_info() is None:
                self._kept[index] = image, label
        return image, label.long()

    def check(self) -> None:
        """Look into the files, or a spread of them, so that a wrong one is told of before the training starts.

        Raises:
            ValueError: See :meth:`__getitem__`.
        """
        for index in spread(range(len(self)), CHECKED):
            self[index]

    def _read(self, pair: Pair) -> tuple[Tensor, Tensor]:
        image = opened(pair.image).convert("RGB")
        pixels = reduced(image, self.short_side)
        size = (pixels.shape[2], pixels.shape[1])
        if pair.label is None:
            return pixels, torch.zeros(size[::-1], dtype=torch.uint8)
        label = read_label(pair.label, self.num_classes, self.decode, self.hint)
        if label.size != image.size:
            raise ValueError(
                f"{pair.label}: expected the size of {pair.image.name}, {image.width}x{image.height}, "
                f"found {label.width}x{label.height}"
            )
        return pixels, torch.from_numpy(np.array(label.resize(size, Image.Resampling.NEAREST)))


def reduced(image: Image.Image, short_side: int | None) -> Tensor:
    """Pixels ``(3, H, W)`` uint8 of an RGB image; of a larger one, with a short side of so many of them."""
    factor = 1.0 if short_side is None else min(1.0, short_side / min(image.size))
    size = (round(image.width * factor), round(image.height * factor))
    return torch.from_numpy(np.array(image.resize(size, Image.Resampling.BILINEAR))).permute(2, 0, 1).contiguous()


def spread(items: Sequence[Item], most: int = COUNTED) -> list[Item]:
    """All of them, or so many and up to twice as many from equal parts of the list."""
    return list(items[:: max(1, len(items) // most)])


def read_label(path: Path, num_classes: int, decode: Decode | None = None, hint: str = "") -> Image.Image:
    """A checked label image of mode L: 0..C-1 or 255.

    Raises:
        ValueError: It holds colors, or values outside; the message says what to do.
    """
    label = opened(path)
    values = values_of(label, decode)
    if values is None:
        raise ValueError(
            f"{path}: expected one class index per pixel (a grayscale or palette PNG), "
            f"found colors (mode {label.mode}); "
            f"{hint or 'write the index of each pixel, not its color'}"
        )
    classes = values if decode is None else decode(values, path)
    wrong = values[(classes >= num_classes) & (classes != IGNORE_INDEX) | (classes < 0)]
    if wrong.size:
        expected = f"labels 0..{num_classes - 1} or {IGNORE_INDEX} (ignored)"
        if isinstance(decode, Encoding):
            expected = f"values that {'palette' if decode.colors else 'mask_values'} names"
        raise ValueError(
            f"{path}: expected {expected}, found {value_names(np.unique(wrong).tolist(), decode)} "
            f"in {wrong.size} pixels" + (f"; {hint}" if hint else "")
        )
    return Image.fromarray(classes.astype(np.uint8))
