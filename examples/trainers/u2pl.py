"""Mean teacher that leaves out the least reliable pixels, after U2PL (Wang et al., 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from brpg_lib.examples.data.augment import IGNORE_INDEX
from brpg_lib.examples.trainers.losses import cross_entropy, selected_cross_entropy
from brpg_lib.examples.trainers.mean_teacher import MeanTeacherTrainer, PseudoLabels

QUANTILE_OF = 2**24  # elements that torch.quantile takes in all versions


class U2PLTrainer(MeanTeacherTrainer):
    """Instead of a threshold, a percentile of the teacher's entropy decides; it reaches all pixels at the end.

    U2PL's own contrastive loss is not part of it: the prototype head takes its place, as in BRPG.
    """

    dropped = 0.2  # share of the pixels that are left out at first

    def unsupervised_loss(self, logits: Tensor, pseudo: PseudoLabels, iteration: int) -> Tensor:
        """Cross entropy with the reliable pseudo labels, which count for those left out, as published.

        With a selection by class, entropy decides there too.
        """
        if self.selection is not None:
            targets = self.select(pseudo.classes, torch.exp(-pseudo.entropy))
            return selected_cross_entropy(logits, targets, pseudo.classes != IGNORE_INDEX)
        share = self.dropped * (1 - iteration / self.iterations)
        valid = pseudo.classes != IGNORE_INDEX
        entropy = pseudo.entropy.where(valid, torch.nan).flatten()
        limit = torch.nanquantile(entropy[:: 1 + len(entropy) // QUANTILE_OF], 1 - share)
        targets = pseudo.classes.masked_fill(pseudo.entropy > limit, IGNORE_INDEX)
        weight = valid.sum() / (targets != IGNORE_INDEX).sum().clamp(min=1)
        return weight * cross_entropy(logits, targets)
