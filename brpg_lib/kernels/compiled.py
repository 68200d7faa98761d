"""Loops that numba compiles for the CPU; import it only where numba is installed, and numba from here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

if "numba" not in sys.modules:
    # Its pool has a thread per core otherwise, which spin: several processes on one machine would crawl.
    os.environ.setdefault("NUMBA_NUM_THREADS", str(torch.get_num_threads()))
import numba

__all__ = ["FAST", "compiled", "numba", "torch_threads"]

FAST = {"reassoc", "contract", "arcp", "nsz"}  # lets sums be vectorized; infinities keep their meaning


def compiled(function: Callable[..., None]) -> Any:
    """Compile when first called, and keep the machine code for later processes where there is a place to."""
    options: dict[str, Any] = {"parallel": True, "fastmath": FAST, "nogil": True}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return numba.njit(**options)(function)


@contextmanager
def torch_threads() -> Iterator[None]:
    """Within, compiled loops use as many threads as torch does."""
    before = numba.get_num_threads()
    numba.set_num_threads(min(torch.get_num_threads(), before))
    try:
        yield
    finally:
        numba.set_num_threads(before)
