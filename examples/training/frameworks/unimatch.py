"""Weak-to-strong consistency with two strong views and a perturbed one, after UniMatch (Yang et al., 2023)."""

from __future__ import annotations

import torch

from brpg_lib import LabeledBatch, UnlabeledBatch
from brpg_lib.examples.training.data.augment import IGNORE_INDEX, cutmix
from brpg_lib.examples.training.data.batches import Batch
from brpg_lib.examples.training.frameworks.base import Step, Trainer, weak_view
from brpg_lib.examples.training.frameworks.losses import selected_cross_entropy
from brpg_lib.examples.training.networks.base import Prediction


class UniMatchTrainer(Trainer):
    """The network's own confident labels of the weak view teach two strong views and a perturbed one."""

    strong_views = 2
    colors = True

    def semi_supervised_step(self, batch: Batch, iteration: int) -> Step:
        """Supervised loss, two kinds of consistency, and the prototype loss."""
        count = len(batch.images)
        wanted = count if self.head is not None else 0
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + iteration)
        clean = self.model(torch.cat([batch.images, batch.weak]), features=2 * wanted, perturb=generator)
        strong = self.model(batch.strong.flatten(0, 1), features=wanted)

        weak = Prediction(
            logits=clean.logits[count:].detach(),
            low_logits=clean.low_logits[count:].detach(),
            features=None if clean.features is None else clean.features[count:].detach(),
            perturbed_logits=None,
        )
        confidence, classes = self.judged(weak.logits.float().softmax(1), weak).max(1)
        classes = classes.masked_fill(batch.padding, IGNORE_INDEX)
        valid, targets = classes != IGNORE_INDEX, self.select(classes, confidence)
        first, second = (
            selected_cross_entropy(logits, cutmix(targets, box), cutmix(valid, box))
            for logits, box in zip(strong.logits.chunk(2), batch.boxes, strict=True)
        )
        perturbed = selected_cross_entropy(clean.perturbed_logits[count:], targets, valid)
        supervised = self.supervised_loss(clean.logits[:count], batch.labels)
        parts = {"supervised": supervised, "strong": (first + second) / 2, "perturbed": perturbed}
        loss = (supervised + parts["strong"] / 2 + perturbed / 2) / 2

        if self.head is not None:
            labeled = LabeledBatch(
                features=clean.features[:count], logits=clean.low_logits[:count], labels=batch.labels
            )
            unlabeled = UnlabeledBatch(
                features=strong.features,
                pseudo_labels=cutmix(classes, batch.boxes[0]),
                confidence=cutmix(confidence, batch.boxes[0]),
                **weak_view(weak.features, weak.low_logits, batch),
            )
            parts["prototype"] = self.head(labeled, unlabeled).loss
            loss = loss + parts["prototype"]
        return loss, parts
