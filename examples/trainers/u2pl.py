"""Mean teacher with CutMix that leaves out the least reliable pixels, in the spirit of U2PL (Wang et al., 2022)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from brpg_lib import LabeledBatch, PrototypeHead, UnlabeledBatch
from brpg_lib.examples.data.augment import IGNORE_INDEX, cutmix
from brpg_lib.examples.data.batches import Batch
from brpg_lib.examples.networks.base import Segmenter
from brpg_lib.examples.trainers.base import Trainer, untracked
from brpg_lib.examples.trainers.losses import cross_entropy

QUANTILE_OF = 2**24  # elements that torch.quantile takes in all versions


class U2PLTrainer(Trainer):
    """The teacher, an average of the student, labels the weak view; the student learns from the mixed strong view.

    Pixels whose teacher entropy is above a percentile are left out; their share shrinks to zero over the training.
    """

    supervised_only = 0.2
    dropped = 0.2  # share of the pixels that are left out at first
    decay = 0.99

    def __init__(self, model: Segmenter, head: PrototypeHead | None, iterations: int, seed: int) -> None:
        super().__init__(model, head, iterations, seed)
        self.teacher = copy.deepcopy(model).requires_grad_(False)

    @property
    def evaluated(self) -> Segmenter:
        """The teacher."""
        return self.teacher

    def step(self, batch: Batch, iteration: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Supervised loss, consistency with the teacher, and the prototype loss."""
        count = len(batch.images)
        self.teacher.train()
        with torch.no_grad():
            weak = self.teacher(batch.weak, features=count)
            probability = weak.logits.float().softmax(1)
            confidence, pseudo = probability.max(1)
            entropy = -(probability * probability.clamp(min=1e-8).log()).sum(1)
            pseudo = pseudo.masked_fill(batch.padding, IGNORE_INDEX)
            box = batch.boxes[0]
            pseudo, confidence, entropy = cutmix(pseudo, box), cutmix(confidence, box), cutmix(entropy, box)

        clean = self.model(batch.images, features=count)
        with untracked(self.model):
            strong = self.model(batch.strong[0], features=count)
        parts = {"supervised": self.supervised_loss(clean.logits, batch.labels)}
        loss = parts["supervised"]
        if not self.is_supervised(iteration):
            targets = self.reliable(pseudo, entropy, iteration)
            kept = (targets != IGNORE_INDEX).sum().clamp(min=1)
            weight = (pseudo != IGNORE_INDEX).sum() / kept  # as published: the others count for those left out
            parts["unsupervised"] = weight * cross_entropy(strong.logits, targets)
            loss = loss + parts["unsupervised"]

        if self.head is not None:
            labeled = LabeledBatch(features=clean.features, logits=clean.low_logits, labels=batch.labels)
            unlabeled = UnlabeledBatch(
                features=strong.features,
                pseudo_labels=pseudo,
                confidence=confidence,
                weak_features=weak.features,
                weak_logits=weak.low_logits,
            )
            out = self.head(labeled, unlabeled)
            loss = loss + out.loss
            parts["prototype"] = out.loss
        return loss, parts

    def reliable(self, pseudo: Tensor, entropy: Tensor, iteration: int) -> Tensor:
        """Pseudo labels without the pixels of the highest entropy."""
        share = self.dropped * (1 - iteration / self.iterations)
        known = entropy[pseudo != IGNORE_INDEX]
        limit = torch.quantile(known[:: 1 + len(known) // QUANTILE_OF], 1 - share)
        return pseudo.masked_fill(entropy > limit, IGNORE_INDEX)

    @torch.no_grad()
    def after_step(self, iteration: int) -> None:
        """Moves the teacher a little towards the student; before it is listened to it is the student."""
        decay = 0.0 if self.is_supervised(iteration) else self.decay
        for average, now in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
            average.lerp_(now, 1 - decay)
        for average, now in zip(self.teacher.buffers(), self.model.buffers(), strict=True):
            average.copy_(now)
