"""Digit scenes: small segmentation scenes composed from scikit-learn's real handwritten digits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from brpg_lib.examples.training.data.batches import Pairs, SegmentationData

SCENES = {"labeled": 80, "unlabeled": 800, "test": 200}
CLASS_NAMES = ("background", *(f"digit {d}" for d in range(10)))
SPLITS = {"labeled": 0, "unlabeled": 1, "test": 2}
TEST_DIGITS = 597  # the last third of the file, written by other people than the first two thirds


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.images * (255 / 16)).astype(np.uint8), bunch.target.astype(np.int64)


def digit_indices(split: str) -> range:
    """Indices of the handwritten digits that scenes of a split may show; train and test share none."""
    count = len(_digits()[1])
    return range(count - TEST_DIGITS, count) if split == "test" else range(count - TEST_DIGITS)


class DigitScenes(Dataset[tuple[Tensor, Tensor]]):
    """Scenes of a few colored handwritten digits over a cluttered background.

    Scene ``i`` is a pure function of ``(seed, split, i)``. Class 0 is the background, class ``1 + d`` the digit ``d``.

    Args:
        split: ``"labeled"``, ``"unlabeled"`` or ``"test"``.
        length: Number of scenes.
        size: Height and width of a scene in pixels.
        seed: Seed of all scenes.
        digits_per_scene: Smallest and largest number of digits in a scene.
        digit_size: Smallest and largest side of a digit, as a share of ``size``.
        clutter: Largest number of strokes that belong to the background.
        noise: Standard deviation of the pixel noise (of 255).
    """

    def __init__(
        self,
        split: str,
        length: int,
        size: int = 33,
        seed: int = 0,
        digits_per_scene: tuple[int, int] = (1, 2),
        digit_size: tuple[float, float] = (0.5, 0.65),
        clutter: int = 3,
        noise: float = 8.0,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, found {split!r}")
        if size < 17:
            raise ValueError(f"size: expected at least 17 pixels, found {size}")
        self.split, self.length, self.size, self.seed = split, length, size, seed
        self.digits_per_scene, self.digit_size = digits_per_scene, digit_size
        self.clutter, self.noise = clutter, noise
        self._scenes: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self[index] for index in range(self.length))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One scene: image ``(3, size, size)`` uint8 and label ``(size, size)`` int64."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        if index not in self._scenes:
            self._scenes[index] = self._compose(np.random.default_rng([self.seed, SPLITS[self.split], index]))
        return self._scenes[index]

    def _compose(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        images, targets = _digits()
        pool = digit_indices(self.split)
        image = self._background(rng)
        label = np.zeros((self.size, self.size), np.int64)
        for _ in range(rng.integers(self.clutter + 1)):
            self._stroke(image, rng)
        for _ in range(rng.integers(self.digits_per_scene[0], self.digits_per_scene[1] + 1)):
            chosen = pool[rng.integers(len(pool))]
            self._place(image, label, images[chosen], int(targets[chosen]) + 1, rng)
        image += rng.normal(0, self.noise, image.shape)
        pixels = image.clip(0, 255).astype(np.uint8).transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(label)

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        """A smooth dark color field."""
        base = rng.uniform(20, 90, 3)
        coarse = (base + rng.uniform(-35, 35, (3, 3, 3))).clip(0, 255).astype(np.uint8)
        field = Image.fromarray(coarse).resize((self.size, self.size), Image.Resampling.BICUBIC)
        return np.array(field, np.float32)

    def _stroke(self, image: np.ndarray, rng: np.random.Generator) -> None:
        """Draws one straight stroke that belongs to no digit."""
        start, angle = rng.uniform(0, self.size, 2), rng.uniform(0, np.pi)
        length, width = rng.uniform(0.15, 0.35) * self.size, rng.uniform(0.7, 1.5)
        y, x = np.mgrid[: self.size, : self.size] - start[:, None, None]
        along = x * np.cos(angle) + y * np.sin(angle)
        across = -x * np.sin(angle) + y * np.cos(angle)
        image[(np.abs(along) < length / 2) & (np.abs(across) < width)] = rng.uniform(0, 255, 3)

    def _place(
        self, image: np.ndarray, label: np.ndarray, digit: np.ndarray, cls: int, rng: np.random.Generator
    ) -> None:
        """Blends one digit into the scene, where it covers the least of the digits before it."""
        side = int(rng.uniform(*self.digit_size) * self.size)
        ink = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
        ink = ink.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC)
        alpha = np.asarray(ink, np.float32)[..., None] / 255
        corners = rng.integers(0, self.size - side + 1, (8, 2))
        top, left = min(corners, key=lambda c: np.count_nonzero(label[c[0] : c[0] + side, c[1] : c[1] + side]))
        color = rng.uniform(170, 255, 3)
        window = image[top : top + side, left : left + side]
        window += alpha.clip(0, 1) * (color - window)
        label[top : top + side, left : left + side][alpha[..., 0] > 0.45] = cls


def load_scenes(size: int, seed: int, all_labels: bool = False) -> SegmentationData:
    """The scenes of a seed, by kind; a mirrored digit is no digit."""
    scenes = {name: DigitScenes(name, count, size, seed) for name, count in SCENES.items()}
    counts = ", ".join(f"{count} {name}" for name, count in SCENES.items())
    labeled: Pairs = scenes["labeled"]
    if all_labels:
        labeled = ConcatDataset([scenes["labeled"], scenes["unlabeled"]])
    return SegmentationData(
        labeled=labeled,
        unlabeled=scenes["unlabeled"],
        test=scenes["test"],
        class_names=CLASS_NAMES,
        flip=False,
        scale=(0.9, 1.1),
        description=f"digit scenes {size}x{size}: {counts}",
    )
