"""Batches as a pure function of (seed, iteration): equal for every run, and exact after a resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from brpg_lib.examples.training.data.augment import (
    IGNORE_INDEX,
    WeakAugment,
    cutmix,
    cutmix_boxes,
    strong_augment,
    to_float,
)
from brpg_lib.examples.training.data.judgement import Masks


class Pairs(Protocol):
    """Images with their labels, by index; what :class:`torch.utils.data.Dataset` and lists of pairs have in common."""

    def __len__(self) -> int:
        """Number of pairs."""

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        """Image ``(3, H, W)`` uint8 and label ``(H, W)`` int64."""


@dataclass(frozen=True)
class SegmentationData:
    """What a trainer needs to know about a dataset.

    Attributes:
        labeled: Pairs of image ``(3, H, W)`` uint8 and label ``(H, W)`` int64, 255 is ignored.
        unlabeled: The same; the labels are never looked at.
        test: Pairs to evaluate on.
        class_names: One name per class.
        flip: Whether mirrored images still show the same classes.
        scale: Range of the random scale.
        description: One line for the reader of the output.
        masks: What the label images hold; None where there are no files.
        colors: Red, green and blue of each class, 0..255; empty where nobody chose them.
    """

    labeled: Pairs
    unlabeled: Pairs
    test: Pairs
    class_names: tuple[str, ...]
    flip: bool
    scale: tuple[float, float]
    description: str
    masks: Masks | None = None
    colors: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class Batch:
    """One iteration's images, already augmented; ``S`` strong views, CutMixed with the same boxes.

    Attributes:
        images: Labeled images ``(B, 3, H, W)``.
        labels: Their labels ``(B, H, W)``.
        weak: Weak view of the unlabeled images ``(B, 3, H, W)``.
        strong: Strong views of the same crops ``(S, B, 3, H, W)``, already mixed.
        boxes: Where each strong view was mixed ``(S, B, H, W)`` bool.
        padding: Pixels of the weak view outside the image ``(B, H, W)`` bool.
        random_state: Of torch's CPU generator once the batch was made, so that what a step draws does not depend on the
            process that made it.
    """

    images: Tensor
    labels: Tensor
    weak: Tensor
    strong: Tensor
    boxes: Tensor
    padding: Tensor
    random_state: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return self._each(lambda values: values.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in memory that a GPU can read; data loaders ask for this."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed = {f.name: change(getattr(self, f.name)) for f in fields(self) if f.name != "random_state"}
        return Batch(**changed, random_state=self.random_state)


def seed_iteration(seed: int, iteration: int, rank: int = 0) -> None:
    """Seeds torch's global generators for one iteration of one process."""
    torch.manual_seed(int(np.random.SeedSequence([seed, iteration, rank]).generate_state(1)[0]))


@lru_cache(maxsize=4)
def shuffled(count: int, seed: int, stream: int, epoch: int) -> np.ndarray:
    """The order of one epoch."""
    return np.random.default_rng([seed, stream, epoch]).permutation(count)


class BatchSource(Dataset[Batch]):
    """Builds the batch of any iteration; as a dataset, its elements are the batches.

    Args:
        data: The dataset.
        size: Side of the square crops.
        batch_size: Images of each kind.
        seed: Seed of the order and the augmentations.
        strong_views: Number of strong views; with 0, unlabeled images are not even read.
        colors: Whether strong views differ in color and sharpness too, or are mixed only.
        rank: Which of the processes that share every iteration's images.
        ranks: How many there are; each gets ``batch_size`` images of its own.
    """

    def __init__(
        self,
        data: SegmentationData,
        size: int,
        batch_size: int,
        seed: int,
        strong_views: int,
        *,
        colors: bool = True,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.data, self.size, self.batch_size, self.seed = data, size, batch_size, seed
        self.strong_views, self.rank, self.ranks = strong_views, rank, ranks
        self.weak = WeakAugment(size, data.scale, data.flip)
        self.strong: Callable[[Tensor], Tensor] = strong_augment() if colors else torch.nn.Identity()

    def __getitem__(self, iteration: int) -> Batch:
        return self(iteration)

    def loader(self, iterations: range, workers: int, device: torch.device) -> DataLoader[Batch]:
        """The batches of these iterations, made by worker processes while the GPU works."""
        return DataLoader(
            self,
            batch_size=None,
            sampler=iterations,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),
        )

    def _indices(self, count: int, iteration: int, stream: int) -> list[int]:
        """This process's positions in an endless sequence of shuffled epochs."""
        first = (iteration * self.ranks + self.rank) * self.batch_size
        places = (divmod(position, count) for position in range(first, first + self.batch_size))
        return [int(shuffled(count, self.seed, stream, epoch)[place]) for epoch, place in places]

    def _weak(self, pairs: Pairs, iteration: int, stream: int) -> tuple[Tensor, Tensor]:
        views = [self.weak(*pairs[i]) for i in self._indices(len(pairs), iteration, stream)]
        return torch.stack([image for image, _ in views]), torch.stack([label for _, label in views])

    def __call__(self, iteration: int) -> Batch:
        """The batch of one iteration. Reseeds torch's global generator."""
        seed_iteration(self.seed, iteration, self.rank)
        images, labels = self._weak(self.data.labeled, iteration, 0)
        if self.strong_views == 0:
            none, no_boxes = (
                images.new_zeros(0, *images.shape[1:]).float(),
                labels.new_zeros(0, *labels.shape[1:]).bool(),
            )
            now = torch.get_rng_state()
            return Batch(to_float(images), labels, none, none[None], no_boxes[None], no_boxes, now)
        unlabeled = _WithoutLabels(self.data.unlabeled)
        weak, padding = self._weak(unlabeled, iteration, 1)
        boxes = torch.stack([cutmix_boxes(self.batch_size, self.size) for _ in range(self.strong_views)])
        strong = torch.stack(
            [cutmix(to_float(torch.stack([self.strong(image) for image in weak])), box) for box in boxes]
        )
        outside = padding == IGNORE_INDEX
        return Batch(to_float(images), labels, to_float(weak), strong, boxes, outside, torch.get_rng_state())


@dataclass(frozen=True)
class _WithoutLabels:
    """Replaces every label by zeros, so that after the augmentation it tells the padding and nothing else."""

    pairs: Pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.pairs[index]
        return image, torch.zeros_like(label)
