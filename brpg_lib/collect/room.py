"""Whether there is room for the queues, said before or where the allocator fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from brpg_lib.validation import require

GIGABYTE = 1e9


def total_memory(device: torch.device) -> int | None:
    """Bytes of a device's memory; None where nobody knows."""
    if device.type == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "cpu" and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def require_room(num_bytes: int, of: str, device: torch.device) -> None:
    """Require a device with so much memory, free or not.

    Args:
        num_bytes: How much is needed.
        of: What it is made of, for the message.
        device: Where.

    Raises:
        ValueError: The device has less.
    """
    limit = total_memory(device)
    if limit is not None:
        expected = f"queues that fit the {limit / GIGABYTE:.3g} GB of {device}"
        require(num_bytes <= limit, "queue_size", expected, too_large(num_bytes, of))


def too_large(num_bytes: int, of: str) -> str:
    """How large the queues are, and what makes them smaller."""
    return (
        f"{num_bytes / GIGABYTE:.3g} GB ({of}); a smaller queue_size or feature_dim, queue_dtype=torch.bfloat16, "
        "or queue_device='cpu' beside a GPU need less"
    )


@contextmanager
def told_of_size(num_bytes: int, of: str) -> Iterator[None]:
    """Inside, an allocator that fails says how large the queues are."""
    try:
        yield
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        text = f"queue_size: no room for queues of {too_large(num_bytes, of)}"
        raise torch.cuda.OutOfMemoryError(text) from error
