"""One k-means pass over many ragged groups of rows, and which of the backends beside this file runs it."""

from __future__ import annotations

import torch
from torch import Tensor

from brpg_lib.config import BACKENDS
from brpg_lib.kernels.lloyd.interface import Lloyd, LloydFactory, Pass
from brpg_lib.kernels.optional import works

__all__ = ["BACKENDS", "Lloyd", "LloydFactory", "Pass", "choose", "installed", "load"]

MIN_TRITON = (3, 2)
MAX_TRITON_CLUSTERS, MAX_TRITON_DIM = 16, 1024


def choose(rows: Tensor, max_clusters: int) -> str:
    """The fastest backend for these rows: one of :data:`BACKENDS`."""
    device = _device_type(rows)
    fits_triton = max_clusters <= MAX_TRITON_CLUSTERS and rows.shape[-1] <= MAX_TRITON_DIM
    if device == "cuda" and fits_triton and installed("triton"):
        return "triton"
    if device == "cpu" and rows.dtype == torch.float32 and installed("numba"):
        return "numba"
    return "torch"


def installed(backend: str) -> bool:
    """Whether what a backend needs is there, recent enough, and can be imported; warns where only the last fails."""
    return backend == "torch" or works(backend, lambda: load(backend))


def _device_type(rows: Tensor) -> str:
    return rows.device.type


def load(backend: str) -> LloydFactory:
    """The implementation of a backend, imported when it is first used.

    Raises:
        ImportError: What the backend needs is not installed.
        ValueError: There is no such backend.
    """
    if backend == "triton":
        import triton

        if tuple(int(part) for part in triton.__version__.split(".")[:2]) < MIN_TRITON:
            raise ImportError(f"triton {'.'.join(map(str, MIN_TRITON))} or newer is needed, found {triton.__version__}")
        from brpg_lib.kernels.lloyd.triton_lloyd import TritonLloyd

        return TritonLloyd
    if backend == "numba":
        from brpg_lib.kernels.lloyd.numba_lloyd import NumbaLloyd

        return NumbaLloyd
    if backend == "torch":
        from brpg_lib.kernels.lloyd.torch_lloyd import TorchLloyd

        return TorchLloyd
    raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, found {backend!r}")
