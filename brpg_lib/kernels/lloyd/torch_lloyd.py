"""The k-means pass in plain torch, for every device and storage type."""

from __future__ import annotations

import torch
from torch import Tensor

from brpg_lib.kernels.blocks import blocks, take
from brpg_lib.kernels.device import widest
from brpg_lib.kernels.lloyd.interface import Pass, inertia_about_means


class TorchLloyd:
    """Passes as batched matrix products, block by block; see :class:`~brpg_lib.kernels.lloyd.interface.Lloyd`."""

    def __init__(self, rows: Tensor, num_rows: Tensor, shift: Tensor, index: Tensor | None = None) -> None:
        if index is not None:
            rows = take(rows, index)
        self.rows, self.shift, self.index = rows, shift, index
        self.valid = torch.arange(rows.shape[1], device=rows.device) < num_rows[:, None]
        total = torch.zeros(len(rows), dtype=widest(rows.device), device=rows.device)
        for place, block in blocks(self.rows):
            square = (block - shift[:, None]).square().sum(-1).masked_fill(~self.valid[:, place], 0.0)
            total += square.sum(1, dtype=total.dtype)
        self.total = total

    def __call__(self, centers: Tensor, allowed: Tensor, active: Tensor, weights: Tensor | None = None) -> Pass:
        """See :meth:`brpg_lib.kernels.lloyd.interface.Lloyd.__call__`."""
        if weights is not None and self.index is not None:
            weights = weights.gather(1, self.index)
        sums = torch.zeros(centers.shape, dtype=widest(centers.device), device=centers.device)
        counts = torch.zeros(centers.shape[:3], dtype=torch.float32, device=centers.device)
        for competitor in range(centers.shape[1]):
            chosen = active[:, competitor].nonzero()[:, 0]
            if len(chosen):
                self._add_up(
                    centers[:, competitor], allowed, chosen, weights, sums[:, competitor], counts[:, competitor]
                )
        sums -= counts.to(sums.dtype)[..., None] * self.shift[:, None, None]
        return Pass(sums.float(), counts, inertia_about_means(self.total[:, None], sums, counts))

    def _add_up(
        self, centers: Tensor, allowed: Tensor, chosen: Tensor, weights: Tensor | None, sums: Tensor, counts: Tensor
    ) -> None:
        """Add to ``sums (G, K, D)`` and ``counts (G, K)`` the rows of the ``chosen (g,)`` groups."""
        every = len(chosen) == len(centers)
        valid = self.valid if every else self.valid[chosen]
        if weights is not None and not every:
            weights = weights[chosen]
        own, exists = centers[chosen], allowed[chosen, :, None]
        # |x - s - e|^2 = |x - s|^2 + |e|^2 + 2 s.e - 2 x.e: the rows need not be copied to be shifted.
        offset = own.square().sum(-1, keepdim=True) + 2 * (own @ self.shift[chosen, :, None])
        offset = offset.masked_fill(~exists, torch.inf)
        added, number = torch.zeros_like(sums[chosen]), torch.zeros_like(counts[chosen])
        for place, block in blocks(self.rows, None if every else chosen):
            scores = torch.baddbmm(offset, own, block.mT, alpha=-2)
            nearest = scores.min(dim=1, keepdim=True).indices  # argmin alone takes 35 times as long
            share = torch.arange(own.shape[1], device=own.device)[:, None] == nearest
            share = (share & valid[:, None, place] & exists).float()
            if weights is not None:
                share = share * weights[:, None, place]
            number += share.sum(-1)
            added += torch.bmm(share, block)
        sums[chosen], counts[chosen] = added, number
