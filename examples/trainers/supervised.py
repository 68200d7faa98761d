"""Labeled images alone: the floor that a semi-supervised framework has to beat."""

from __future__ import annotations

from torch import Tensor

from brpg_lib import LabeledBatch
from brpg_lib.examples.data.batches import Batch
from brpg_lib.examples.trainers.base import Trainer


class SupervisedTrainer(Trainer):
    """The supervised loss; with a head, prototypes of labeled pixels only."""

    strong_views = 0

    def step(self, batch: Batch, iteration: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Supervised loss, and the prototype loss."""
        clean = self.model(batch.images, features=len(batch.images))
        parts = {"supervised": self.supervised_loss(clean.logits, batch.labels)}
        loss = parts["supervised"]
        if self.head is not None:
            out = self.head(LabeledBatch(features=clean.features, logits=clean.low_logits, labels=batch.labels))
            loss = loss + out.loss
            parts["prototype"] = out.loss
        return loss, parts
