"""Which pixels enter the loss, and their feature vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from brpg_lib.batches import LabeledBatch, UnlabeledBatch
from brpg_lib.kernels import reading
from brpg_lib.kernels.classes import known_classes
from brpg_lib.kernels.random import uniform
from brpg_lib.kernels.vectors import has_direction


@dataclass(frozen=True)
class Points:
    """Points of one loss term; their number does not depend on the data, so no step waits for the device.

    Attributes:
        features: ``(N, D)`` float32, differentiable; finite.
        classes: ``(N,)`` int64; ``ignore_index`` where the point does not count.
        dropped: ``()`` int64: points left out because their features were zero or not finite, or (on CUDA, where this
            raises nothing) their label was neither a class nor the ignore index.
    """

    features: Tensor
    classes: Tensor
    dropped: Tensor


def grid_of(length: int, grid_size: int) -> tuple[int, int]:
    """Points of the grid along one axis, and the step from one to the next; the last one is at ``length - 1``."""
    if length == 1:
        return 1, 0
    grid_size = max(1, min(grid_size, length - 1))
    return grid_size + 1, (length - 1) // grid_size


def grid_positions(length: int, grid_size: int, device: torch.device) -> Tensor:
    """Positions of the grid along one axis: ``0, s, ..., (grid_size - 1) s, length - 1``, ``s = (length-1) // grid``.

    An axis with fewer steps than the grid gives each of its positions once.

    Returns:
        ``(P,)`` int64, ``P <= grid_size + 1``.
    """
    count, step = grid_of(length, grid_size)
    number = torch.arange(count, device=device)
    # The rest goes to the last one. Setting it in place would copy a number to the device.
    return number * step + (number == count - 1) * (length - 1 - (count - 1) * step)


def grid_of_volume(grid_size: int) -> int:
    """Intervals along each axis of a volume, so that there are about as many points as on the grid of an image.

    >>> grid_of_volume(32)  # 10 ** 3 points, 33 ** 2 of an image
    9
    """
    along: int = round(float(grid_size + 1) ** (2 / 3)) - 1
    return max(1, along)


def labeled_points(
    batch: LabeledBatch, *, num_classes: int, grid_size: int, align_corners: bool, ignore_index: int
) -> Points:
    """Points on a regular grid of the labeled images, or volumes.

    Returns:
        ``B * P_rows * P_columns`` points, at most ``B * (grid_size + 1) ** 2``; about as many of volumes.
    """
    num_images, *size = batch.labels.shape
    device, along = batch.labels.device, grid_size if len(size) == 2 else grid_of_volume(grid_size)
    axes = (torch.arange(num_images, device=device), *(grid_positions(length, along, device) for length in size))
    image, *positions = (axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij"))
    features = reading.read(batch.features, image, positions, size, align_corners=align_corners)
    place = (image, *positions)
    return _usable(features, batch.labels[place], num_classes, ignore_index)


def unlabeled_points(
    batch: UnlabeledBatch,
    threshold: float | Tensor,
    key: Tensor,
    *,
    num_classes: int,
    samples_per_image: int,
    align_corners: bool,
    ignore_index: int,
) -> Points:
    """Points drawn uniformly from the batch's pixels with a confident pseudo label.

    Args:
        batch: The unlabeled images.
        threshold: Confidence that a pseudo label needs: ``()``, or ``(C,)`` of each class.
        key: ``()`` int64 seed of the draw.
        num_classes: Number of classes.
        samples_per_image: Cap: this times the images of the batch.
        align_corners: How feature and label pixels correspond.
        ignore_index: Class of the places that no confident pixel fills.

    Returns:
        ``min(B * samples_per_image, B * H * W)`` points.
    """
    num_images, *size = batch.pseudo_labels.shape
    labels = batch.pseudo_labels.flatten()
    target, has_class = known_classes(labels, num_classes)
    if isinstance(threshold, Tensor) and threshold.ndim:
        threshold = threshold[target]
    confident = (batch.confidence.flatten() >= threshold) & has_class
    # The largest of independent uniform numbers are a uniform draw without replacement.
    scores = torch.where(confident, uniform((len(labels),), key), -1.0)
    drawn, pixel = scores.topk(min(num_images * samples_per_image, len(labels)), sorted=False)
    pixel, order = pixel.sort()  # image by image, they are read faster
    drawn = drawn[order]
    image, *positions = reading.positions_of(pixel, (num_images, *size))
    features = reading.read(batch.features, image, positions, size, align_corners=align_corners)
    classes = torch.where(drawn > 0, labels[pixel].long(), ignore_index)
    return _usable(features, classes, num_classes, ignore_index)


def _usable(features: Tensor, classes: Tensor, num_classes: int, ignore_index: int) -> Points:
    """Take points without a class or a direction out of the count."""
    _, has_class = known_classes(classes, num_classes)
    usable = has_direction(features)
    return Points(
        features=features,
        classes=torch.where(has_class & usable, classes.long(), ignore_index),
        dropped=((has_class & ~usable) | (~has_class & (classes != ignore_index))).sum(),
    )
