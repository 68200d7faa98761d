"""Sizes of the published trainings, and smaller ones of the same shape."""

from __future__ import annotations

from dataclasses import dataclass, replace

SIZES = ("full", "quick", "tiny")


@dataclass(frozen=True)
class Preset:
    """Sizes of one training.

    Attributes:
        name: Name of the dataset.
        num_classes: C.
        crop: Side of the square crops in pixels.
        feature_dim: D.
        queue_size: Rows of each class and group queue.
        images: Labeled images per step, and as many unlabeled ones.
        stride: Image pixels per feature pixel.
        num_prototypes: High- and low-confidence prototypes per class; one class in twenty gets one more of each.
        grid_size: Intervals per axis of the grid of labeled points.
        unlabeled_samples_per_image: Unlabeled points per image.
    """

    name: str
    num_classes: int
    crop: int = 513
    feature_dim: int = 256
    queue_size: int = 30000
    images: int = 2
    stride: int = 4
    num_prototypes: tuple[int, int] = (2, 2)
    grid_size: int = 32
    unlabeled_samples_per_image: int = 1000

    @property
    def map_size(self) -> int:
        """Side of the feature maps."""
        return (self.crop - 1) // self.stride + 1

    @property
    def num_split(self) -> int:
        """Classes with one more prototype, in each group."""
        return max(1, round(self.num_classes / 20))

    def scaled(self, size: str) -> Preset:
        """The same at one of :data:`SIZES`: as it is, in seconds, or in about a second."""
        if size == "full":
            return self
        if size == "quick":
            return replace(self, num_classes=min(self.num_classes, 6), crop=257, queue_size=10000)
        return replace(
            self,
            num_classes=3,
            crop=33,
            feature_dim=16,
            queue_size=300,
            grid_size=8,
            unlabeled_samples_per_image=50,
        )


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("voc", num_classes=21),
        Preset("cityscapes", num_classes=19, crop=769),
        Preset("coco", num_classes=81),
        Preset("ade20k", num_classes=150),
    )
}
