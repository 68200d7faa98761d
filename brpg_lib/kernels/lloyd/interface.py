"""What one k-means pass over many ragged groups of rows takes and finds, whichever backend runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor


class Pass(NamedTuple):
    """What one pass over the rows of G groups finds for R competing sets of K centers per group.

    Where a set is not active, its values mean nothing.

    Attributes:
        sums: ``(G, R, K, D)`` float32, sum of the rows nearest to each center, relative to the group's shift.
        counts: ``(G, R, K)`` float32, how many these are; with weights, ``sums`` and ``counts`` are weighted.
        inertia: ``(G, R)`` float32, sum of squared distances of the rows to the mean of those with the same nearest
            center.
    """

    sums: Tensor
    counts: Tensor
    inertia: Tensor


def inertia_about_means(total: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
    """Sum of squared distances ``(G, R)`` to the means of clusters with these ``sums`` and ``counts``.

    ``total (G, R)`` is the sum of squares of all rows. Float64 where there is, as what is left may be small beside it.
    """
    wide = total.dtype
    between = (sums.to(wide).square().sum(-1) / counts.to(wide).clamp(min=1)).sum(-1)
    return (total - between).clamp(min=0.0).float()


class Lloyd(Protocol):
    """Passes over one set of rows. Sets that are not active in one call are not in later ones either."""

    def __call__(self, centers: Tensor, allowed: Tensor, active: Tensor, weights: Tensor | None = None) -> Pass:
        """Assign each row to its nearest center and add up, reading each row once.

        Args:
            centers: ``(G, R, K, D)`` float32, relative to the group's shift.
            allowed: ``(G, K)`` bool, centers that exist.
            active: ``(G, R)`` bool, sets to compute.
            weights: ``(G, n)`` float32 of each row in sums and counts, or ``None`` for 1.
        """


LloydFactory = Callable[[Tensor, Tensor, Tensor, Tensor | None], Lloyd]
"""``(rows (G, n, D), num_rows (G,), shift (G, D) float32, index (G, m) or None) -> Lloyd``.

The first ``num_rows[g]`` rows of group g count, or those at the first ``num_rows[g]`` places of ``index[g]``. ``shift``
is a point near the rows of each group, which keeps float32 exact enough for data far from the origin.
"""
