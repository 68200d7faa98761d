"""Weak-to-strong consistency with two strong views and a perturbed one, after UniMatch (Yang et al., 2023)."""

from __future__ import annotations

import torch

from brpg_lib import LabeledBatch, UnlabeledBatch
from brpg_lib.examples.data.augment import IGNORE_INDEX, cutmix
from brpg_lib.examples.data.batches import Batch
from brpg_lib.examples.trainers.base import Step, Trainer, weak_view
from brpg_lib.examples.trainers.mean_teacher import confident_cross_entropy


class UniMatchTrainer(Trainer):
    """The network's own confident labels of the weak view teach two strong views and a perturbed one."""

    strong_views = 2
    colors = True
    threshold = 0.95

    def semi_supervised_step(self, batch: Batch, iteration: int) -> Step:
        """Supervised loss, two kinds of consistency, and the prototype loss."""
        count = len(batch.images)
        wanted = count if self.head is not None else 0
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + iteration)
        clean = self.model(torch.cat([batch.images, batch.weak]), features=2 * wanted, perturb=generator)
        strong = self.model(batch.strong.flatten(0, 1), features=wanted)

        confidence, classes = clean.logits[count:].detach().float().softmax(1).max(1)
        classes = classes.masked_fill(batch.padding, IGNORE_INDEX)
        mixed = [(cutmix(classes, box), cutmix(confidence, box)) for box in batch.boxes]
        first, second = (
            confident_cross_entropy(logits, *target, self.threshold)
            for logits, target in zip(strong.logits.chunk(2), mixed, strict=True)
        )
        perturbed = confident_cross_entropy(clean.perturbed_logits[count:], classes, confidence, self.threshold)
        supervised = self.supervised_loss(clean.logits[:count], batch.labels)
        parts = {"supervised": supervised, "strong": (first + second) / 2, "perturbed": perturbed}
        loss = (supervised + parts["strong"] / 2 + perturbed / 2) / 2

        if self.head is not None:
            labeled = LabeledBatch(
                features=clean.features[:count], logits=clean.low_logits[:count], labels=batch.labels
            )
            unlabeled = UnlabeledBatch(
                features=strong.features,
                pseudo_labels=mixed[0][0],
                confidence=mixed[0][1],
                **weak_view(clean.features[count:].detach(), clean.low_logits[count:].detach(), batch),
            )
            parts["prototype"] = self.head(labeled, unlabeled).loss
            loss = loss + parts["prototype"]
        return loss, parts
