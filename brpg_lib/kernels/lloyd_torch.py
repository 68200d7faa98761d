"""The k-means pass in plain torch, for every device and storage type."""

from __future__ import annotations

import torch
from torch import Tensor

from brpg_lib.kernels.blocks import blocks, take
from brpg_lib.kernels.lloyd import Pass, inertia_about_means


class TorchLloyd:
    """Passes as batched matrix products, block by block; see :class:`~brpg_lib.kernels.lloyd.Lloyd`.

    It computes inactive sets too.
    """

    def __init__(self, rows: Tensor, num_rows: Tensor, shift: Tensor, index: Tensor | None = None) -> None:
        if index is not None:
            rows = take(rows, index)
        self.rows, self.shift, self.index = rows, shift, index
        self.valid = torch.arange(rows.shape[1], device=rows.device) < num_rows[:, None]
        total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for place, block in blocks(self.rows):
            square = (block - shift[:, None]).square().sum(-1).masked_fill(~self.valid[:, place], 0.0)
            total += square.double().sum(1)
        self.total = total

    def __call__(self, centers: Tensor, allowed: Tensor, active: Tensor, weights: Tensor | None = None) -> Pass:
        """See :meth:`brpg_lib.kernels.lloyd.Lloyd.__call__`."""
        groups, sets, clusters, dim = centers.shape
        if weights is not None and self.index is not None:
            weights = weights.gather(1, self.index)
        flat = centers.flatten(1, 2)
        # |x - s - e|^2 = |x - s|^2 + |e|^2 + 2 s.e - 2 x.e: the rows need not be copied to be shifted.
        offset = flat.square().sum(-1) + 2 * (flat @ self.shift[..., None])[..., 0]
        offset = offset.view(groups, sets, clusters).masked_fill(~allowed[:, None], torch.inf).view(groups, -1, 1)
        sums = torch.zeros(groups, sets * clusters, dim, dtype=torch.float64, device=centers.device)
        counts = torch.zeros(groups, sets, clusters, device=centers.device)
        for place, block in blocks(self.rows):
            scores = torch.baddbmm(offset, flat, block.mT, alpha=-2).view(groups, sets, clusters, -1)
            nearest = scores.min(dim=2, keepdim=True).indices  # argmin alone takes 35 times as long
            share = torch.arange(clusters, device=centers.device)[:, None] == nearest
            share = (share & self.valid[:, None, None, place] & allowed[:, None, :, None]).float()
            if weights is not None:
                share = share * weights[:, None, None, place]
            counts += share.sum(-1)
            sums += torch.bmm(share.flatten(1, 2), block)
        sums = sums.view(centers.shape) - counts.double()[..., None] * self.shift[:, None, None]
        return Pass(sums.float(), counts, inertia_about_means(self.total[:, None], sums, counts))
