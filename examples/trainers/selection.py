"""Which pseudo labels teach: of each class the most reliable ones (class-balanced self-training, Zou et al., 2018).

One threshold for all classes passes almost every pixel of the easy classes and none of the hard ones. A network that
learns from these alone forgets the hard ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brpg_lib.distributed import all_reduce_sum
from brpg_lib.examples.data.augment import IGNORE_INDEX
from brpg_lib.validation import require_number

BINS = 1000
HIGHEST = 0.98
"""Pixels at least this reliable always teach, also where most of their class are more so."""
FEWEST = 20
"""Pixels of a class in a batch that say something about it."""
MEMORY = 0.9


class MostReliable(nn.Module):
    """Keeps the same share of the pixels of every class.

    Limits are averaged over batches, as one batch holds few pixels of a rare class; they are the same in all processes.
    Nothing here waits for a GPU.

    Args:
        num_classes: C.
        share: Of the pixels of each class, above 0 and at most 1.

    Attributes:
        limits: ``(C,)`` least reliability that teaches; 0 for a class not seen yet.

    Raises:
        ValueError: The share is out of range.
    """

    limits: Tensor

    def __init__(self, num_classes: int, share: float) -> None:
        super().__init__()
        require_number("class_share", share, 0.0, 1.0, open_low=True)
        self.share = share
        self.register_buffer("limits", torch.zeros(num_classes))

    @torch.no_grad()
    def forward(self, classes: Tensor, reliability: Tensor) -> Tensor:
        """Pseudo labels that teach keep their class, the others are ignored.

        Args:
            classes: ``(B, H, W)`` int64; 255 is ignored.
            reliability: ``(B, H, W)`` between 0 and 1.

        Returns:
            ``(B, H, W)`` int64.
        """
        valid = classes != IGNORE_INDEX
        known = classes.masked_fill(~valid, 0)
        self._look(known, reliability, valid)
        reliable = reliability >= self.limits.clamp(max=HIGHEST)[known]
        return classes.masked_fill(~reliable, IGNORE_INDEX)

    def _look(self, known: Tensor, reliability: Tensor, valid: Tensor) -> None:
        place = known * BINS + (reliability * BINS).long().clamp(0, BINS - 1)
        counts = torch.zeros(len(self.limits) * BINS, dtype=torch.int64, device=known.device)
        counts.index_add_(0, place.flatten(), valid.flatten().long())
        at_least = all_reduce_sum(counts).view(-1, BINS).flip(1).cumsum(1).flip(1)
        total = at_least[:, 0]
        highest = (at_least >= self.share * total[:, None]).sum(1) - 1
        now = highest / BINS
        averaged = torch.where(self.limits > 0, now.lerp(self.limits, MEMORY), now)
        self.limits.copy_(torch.where(total >= FEWEST, averaged, self.limits))
