"""Whether there is room for the queues, said before they are made, or where the allocator fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from brpg_lib.validation import require

GIGABYTE = 1e9


class Room(NamedTuple):
    """What queues take when they are full.

    Attributes:
        num_classes: Number of classes.
        rows: Of each class.
        feature_dim: Channels of a row.
        dtype: Of its features; its confidence is a float32.
    """

    num_classes: int
    rows: int
    feature_dim: int
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size."""
        return self.num_classes * self.rows * (self.feature_dim * self.dtype.itemsize + 4)

    def __str__(self) -> str:
        sizes = f"num_classes {self.num_classes} x {self.rows} rows x feature_dim {self.feature_dim}"
        return (
            f"{self.num_bytes / GIGABYTE:.3g} GB ({sizes} in {str(self.dtype).removeprefix('torch.')}); a smaller "
            "queue_size or feature_dim, queue_dtype=torch.bfloat16, or queue_device='cpu' beside a GPU need less"
        )

    def require(self, device: torch.device) -> None:
        """Require a device with so much memory, free or not.

        Raises:
            ValueError: The device has less.
        """
        limit = total_memory(device)
        if limit is not None:
            expected = f"queues that fit the {limit / GIGABYTE:.3g} GB of {device}"
            require(self.num_bytes <= limit, "queue_size", expected, self)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Inside, an allocator that fails says how large the queues are.

        Raises:
            torch.cuda.OutOfMemoryError: There is no memory left.
        """
        try:
            yield
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            raise torch.cuda.OutOfMemoryError(f"queue_size: no room for queues of {self}") from error


def total_memory(device: torch.device) -> int | None:
    """Bytes of a device's memory; None where nobody knows."""
    if device.type == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "cpu" and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None
