"""Mean teacher that leaves out the least reliable pixels, after U2PL (Wang et al., 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from brpg_lib.examples.training.data.augment import IGNORE_INDEX
from brpg_lib.examples.training.frameworks.losses import cross_entropy
from brpg_lib.examples.training.frameworks.mean_teacher import MeanTeacherTrainer, PseudoLabels

QUANTILE_OF = 2**24  # elements that torch.quantile takes in all versions


class U2PLTrainer(MeanTeacherTrainer):
    """Instead of a threshold, a percentile of the teacher's entropy decides; it reaches all pixels at the end.

    U2PL's own contrastive loss is not part of it: the prototype head takes its place, as in BRPG.
    """

    dropped = 0.2  # share of the pixels that are left out at first

    def targets(self, pseudo: PseudoLabels, iteration: int) -> Tensor:
        """The reliable pseudo labels, by entropy; also where the selection goes by class."""
        if self.limits is not None:
            return self.select(pseudo.classes, torch.exp(-pseudo.entropy))
        share = self.dropped * (1 - iteration / self.iterations)
        entropy = pseudo.entropy.where(pseudo.classes != IGNORE_INDEX, torch.nan).flatten()
        limit = torch.nanquantile(entropy[:: 1 + len(entropy) // QUANTILE_OF], 1 - share)
        return pseudo.classes.masked_fill(pseudo.entropy > limit, IGNORE_INDEX)

    def unsupervised_loss(self, logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
        """As published, the reliable pseudo labels count for those left out."""
        if self.limits is not None:
            return super().unsupervised_loss(logits, targets, valid)
        weight = valid.sum() / (targets != IGNORE_INDEX).sum().clamp(min=1)
        return weight * cross_entropy(logits, targets)
