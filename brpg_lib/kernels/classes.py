"""Which labels are classes."""

from __future__ import annotations

from torch import Tensor


def known_classes(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Labels as indices.

    Args:
        labels: Integers of any shape.
        num_classes: Number of classes C.

    Returns:
        int64 of the same shape, some class where a label is none of 0..C-1; and bool, where it is one.
    """
    labels = labels.long()  # comparing uint8 with -1 or 300 would wrap around
    classes = labels.clamp(0, num_classes - 1)
    return classes, classes == labels
