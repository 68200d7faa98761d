"""Weak-to-strong consistency with two strong views and a perturbed one, after UniMatch (Yang et al., 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from brpg_lib import LabeledBatch, UnlabeledBatch
from brpg_lib.examples.data.augment import IGNORE_INDEX, cutmix
from brpg_lib.examples.data.batches import Batch
from brpg_lib.examples.trainers.base import Trainer, untracked
from brpg_lib.examples.trainers.losses import cross_entropy


class UniMatchTrainer(Trainer):
    """The network's own confident labels of the weak view teach two strong views and a perturbed one."""

    strong_views = 2
    threshold = 0.9

    def step(self, batch: Batch, iteration: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Supervised loss, two kinds of consistency, and the prototype loss."""
        count = len(batch.images)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + iteration)
        clean = self.model(torch.cat([batch.images, batch.weak]), features=2 * count, perturb=generator)
        with untracked(self.model):
            strong = self.model(batch.strong.flatten(0, 1), features=count)

        confidence, pseudo = clean.logits[count:].detach().softmax(1).max(1)
        pseudo = pseudo.masked_fill(batch.padding, IGNORE_INDEX)
        mixed = [(cutmix(pseudo, box), cutmix(confidence, box)) for box in batch.boxes]
        parts = {"supervised": self.supervised_loss(clean.logits[:count], batch.labels)}
        loss = parts["supervised"] / 2
        if not self.is_supervised(iteration):
            parts["strong"] = sum(
                self.consistency(logits, *target) / 2
                for logits, target in zip(strong.logits.chunk(2), mixed, strict=True)
            )
            parts["perturbed"] = self.consistency(clean.perturbed_logits[count:], pseudo, confidence)
            loss = loss + (parts["strong"] + parts["perturbed"]) / 4

        if self.head is not None:
            labeled = LabeledBatch(
                features=clean.features[:count], logits=clean.low_logits[:count], labels=batch.labels
            )
            unlabeled = UnlabeledBatch(
                features=strong.features,
                pseudo_labels=mixed[0][0],
                confidence=mixed[0][1],
                weak_features=clean.features[count:].detach(),
                weak_logits=clean.low_logits[count:].detach(),
            )
            out = self.head(labeled, unlabeled)
            loss = loss + out.loss
            parts["prototype"] = out.loss
        return loss, parts

    def consistency(self, logits: Tensor, pseudo: Tensor, confidence: Tensor) -> Tensor:
        """Cross entropy with the confident pseudo labels, averaged over all valid pixels."""
        valid = pseudo != IGNORE_INDEX
        confident = pseudo.masked_fill(confidence < self.threshold, IGNORE_INDEX)
        share = (confident != IGNORE_INDEX).sum() / valid.sum().clamp(min=1)
        return share * cross_entropy(logits, confident)
