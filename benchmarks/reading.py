"""The fastest way to read memory that numba knows."""

from __future__ import annotations

from typing import Any

import numba
import torch
from torch import Tensor


def numba_sum(values: Tensor) -> float:
    """Sum of a contiguous float32 tensor in host memory, with as many threads as torch uses."""
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    return float(_sum(values.view(-1).numpy()))


@numba.njit(parallel=True, fastmath=True, cache=True)  # type: ignore[untyped-decorator]
def _sum(values: Any) -> Any:
    total = 0.0
    for i in numba.prange(len(values)):
        total += values[i]
    return total
