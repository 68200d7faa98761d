"""Batches for the trainer examples: labeled scenes beside two views of unlabeled ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from brpg_lib.examples.training.data.augment import to_float
from brpg_lib.examples.training.data.digits import DigitScenes

LABELED = 80
"""Labeled scenes; they repeat while the unlabeled ones go on."""


def large_digits(split: str, length: int) -> DigitScenes:
    """Scenes of one large digit on a plain background, so that a network from scratch learns the classes in seconds."""
    return DigitScenes(split, length, digits_per_scene=(1, 1), digit_size=(0.8, 1.0), clutter=0)


class DigitViews(Dataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """Pairs of a labeled and an unlabeled scene of :func:`large_digits`, each a pure function of its index.

    Args:
        length: Number of pairs, and of unlabeled scenes.
    """

    def __init__(self, length: int) -> None:
        self.labeled, self.unlabeled = large_digits("labeled", LABELED), large_digits("unlabeled", length)

    def __len__(self) -> int:
        return len(self.unlabeled)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Image ``(3, 33, 33)`` and label ``(33, 33)``; a weak and a strong view ``(3, 33, 33)`` of another scene."""
        scene, _ = self.unlabeled[index]
        image, label = self.labeled[index % LABELED]
        weak = to_float(scene)
        noise = torch.randn(weak.shape, generator=torch.Generator().manual_seed(index))
        return to_float(image), label, weak, weak + 0.3 * noise


def digit_loader(steps: int, batch_size: int = 8) -> DataLoader[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """``steps`` batches of :class:`DigitViews`, in order: what a scene shows is random already.

    With a generator of its own, the loader leaves torch's global random state alone.
    """
    return DataLoader(DigitViews(steps * batch_size), batch_size, generator=torch.Generator())


def digit_test_loader(images: int, batch_size: int = 32) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches of images ``(B, 3, 33, 33)`` float32 and labels ``(B, 33, 33)``, of digits that others have written."""
    scenes = [(to_float(image), label) for image, label in large_digits("test", images)]
    return DataLoader(scenes, batch_size, generator=torch.Generator())  # type: ignore[arg-type]  # a list will do
