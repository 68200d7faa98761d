"""The steps of a clustering: in plain torch, or in few launches where the passes over the rows are Triton's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from brpg_lib.kernels import lloyd
from brpg_lib.kernels.kmeans import descent, seeding
from brpg_lib.kernels.optional import works


class Steps(NamedTuple):
    """Functions of :mod:`~brpg_lib.kernels.kmeans.seeding` and :mod:`~brpg_lib.kernels.kmeans.descent`."""

    numbers: Callable[[int, Tensor, int], Tensor]
    seed: Callable[..., Tensor]
    descend: Callable[..., descent.Descent]


PLAIN = Steps(seeding.numbers, seeding.seed, descent.descend)


def steps_for(backend: str, rows: Tensor, max_clusters: int) -> Steps:
    """The steps that go with a backend of the passes over ``rows (G, n, D)``."""
    fits = backend == "triton" and _works(rows.device, rows.dtype, rows.shape[2], max_clusters)
    return load() if fits else PLAIN


def load() -> Steps:
    """Those of Triton, imported when they are first used."""
    from brpg_lib.kernels.kmeans import triton_descent, triton_seeding

    return Steps(triton_seeding.numbers, triton_seeding.seed, triton_descent.descend)


@cache
def _works(device: torch.device, dtype: torch.dtype, dim: int, clusters: int) -> bool:
    """Whether they run on a device; warns where they fail. The first time compiles them."""
    return works("triton", lambda: _try(device, dtype, dim, clusters), f" on {device}")


def _try(device: torch.device, dtype: torch.dtype, dim: int, clusters: int) -> None:
    steps, create = load(), lloyd.load("triton")
    rows = torch.arange(16.0, device=device)[None, :, None].expand(1, 16, dim)
    count, allowed = torch.tensor([16], device=device), torch.ones(1, clusters, dtype=torch.bool, device=device)
    shift, index = rows[:, 0].contiguous(), torch.arange(16, device=device)[None]
    centers = steps.seed(rows, count, allowed, 8, count, 1)
    for sets, place, race in ((8, None, False), (3, index, False), (2, None, True), (3, None, True)):
        start = descent.Descent.start(centers[:, :sets] - shift, torch.ones(1, sets, dtype=torch.bool, device=device))
        every = descent.Rows(rows.to(dtype), count, shift, place)
        found = steps.descend(create, every, start, allowed, 3, torch.full((1, 1), 1e-4, device=device), race)
        if not bool((found.counts.sum(2) == 16).all()):
            raise RuntimeError(f"expected clusters of 16 rows, found {found.counts.tolist()}")
