"""One k-means pass over many ragged groups of rows, and which of the backends beside this file runs it."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from brpg_lib.config import BACKENDS
from brpg_lib.kernels.lloyd.interface import Lloyd, LloydFactory, Pass
from brpg_lib.kernels.optional import works

__all__ = ["BACKENDS", "Lloyd", "LloydFactory", "Pass", "choose", "installed", "launches", "load"]

MIN_TRITON = (3, 0)


def choose(rows: Tensor, max_clusters: int) -> str:
    """The fastest backend for these rows: one of :data:`BACKENDS`."""
    device = _device_type(rows)
    dim = rows.shape[-1]
    fits = device == "cuda" and _fits_triton(dim, max_clusters, rows.device)
    if fits and launches("triton", rows.device, rows.dtype, dim, max_clusters):
        return "triton"
    if device == "cpu" and rows.dtype == torch.float32 and launches("numba", rows.device, rows.dtype):
        return "numba"
    return "torch"


@cache
def launches(backend: str, device: torch.device, dtype: torch.dtype, dim: int = 2, clusters: int = 2) -> bool:
    """Whether a backend is installed, and clusters four rows such as these on a device; warns if only the last fails.

    What fails here (no C compiler, an old driver) would otherwise end a training when it clusters, an hour in.
    """
    return installed(backend) and works(backend, lambda: _try(backend, device, dtype, dim, clusters), f" on {device}")


def _fits_triton(dim: int, clusters: int, device: torch.device) -> bool:
    if not installed("triton"):
        return False
    from brpg_lib.kernels.lloyd import triton_lloyd

    return triton_lloyd.fits(dim, clusters, device)


def _try(backend: str, device: torch.device, dtype: torch.dtype, dim: int, clusters: int) -> None:
    rows = torch.zeros(1, 4, dim, device=device, dtype=dtype)
    count, shift = torch.tensor([4], device=device), torch.zeros(1, dim, dtype=torch.float32, device=device)
    centers = 9.0 * (torch.arange(clusters, device=device) > 0)[:, None].expand(1, 1, clusters, dim)
    allowed, active = (torch.ones(1, size, dtype=torch.bool, device=device) for size in (clusters, 1))
    for index in (None, torch.arange(4, device=device)[None]):
        found = load(backend)(rows, count, shift, index)(centers, allowed, active).counts.flatten().tolist()
        if found != [4.0] + [0.0] * (clusters - 1):
            raise RuntimeError(f"expected a cluster of 4 rows and others of none, found {found}")


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
