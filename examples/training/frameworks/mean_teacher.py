"""The plainest framework: a mean teacher (Tarvainen and Valpola, 2017) with CutMix (French et al., 2020)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from brpg_lib import LabeledBatch, UnlabeledBatch
from brpg_lib.examples.training.data.augment import IGNORE_INDEX, cutmix
from brpg_lib.examples.training.data.batches import Batch
from brpg_lib.examples.training.frameworks.base import Step, Trainer, weak_view
from brpg_lib.examples.training.frameworks.losses import selected_cross_entropy
from brpg_lib.examples.training.networks.base import Prediction


class PseudoLabels(NamedTuple):
    """What the teacher says of the mixed strong view.

    Attributes:
        classes: ``(B, H, W)`` int64; 255 outside the image.
        confidence: ``(B, H, W)`` float32, probability of that class.
        entropy: ``(B, H, W)`` float32, in nats.
        weak: The teacher's prediction for the weak view, not mixed.
    """

    classes: Tensor
    confidence: Tensor
    entropy: Tensor
    weak: Prediction


class MeanTeacherTrainer(Trainer):
    """The average labels the weak view; where it is confident, the network learns that from the mixed strong view.

    Labeled and strong images pass the network together, so that they share the statistics of batch norm.
    """

    def semi_supervised_step(self, batch: Batch, iteration: int) -> Step:
        """Supervised loss, consistency with the teacher, and the prototype loss."""
        count = len(batch.images)
        pseudo = self.pseudo_labels(batch)
        targets = self.targets(pseudo, iteration)
        wanted = 2 * count if self.head is not None else 0
        both = self.model(torch.cat([batch.images, batch.strong[0]]), features=wanted)
        valid = pseudo.classes != IGNORE_INDEX
        parts = {
            "supervised": self.supervised_loss(both.logits[:count], batch.labels),
            "unsupervised": self.unsupervised_loss(both.logits[count:], targets, valid),
        }
        if self.head is not None:
            labeled = LabeledBatch(features=both.features[:count], logits=both.low_logits[:count], labels=batch.labels)
            unlabeled = UnlabeledBatch(
                features=both.features[count:],
                pseudo_labels=pseudo.classes,
                confidence=pseudo.confidence,
                **weak_view(pseudo.weak.features, pseudo.weak.low_logits, batch),
            )
            parts["prototype"] = self.head(labeled, unlabeled).loss
        return torch.stack(list(parts.values())).sum(), parts

    @torch.no_grad()
    def pseudo_labels(self, batch: Batch) -> PseudoLabels:
        """The teacher's labels of the weak view, mixed as the strong view is."""
        weak = self.average(batch.weak, features=len(batch.weak) if self.needs_weak_features else 0)
        probability = self.judged(weak.logits.float().softmax(1), weak)
        confidence, classes = probability.max(1)
        entropy = torch.special.entr(probability).sum(1)
        classes = classes.masked_fill(batch.padding, IGNORE_INDEX)
        box = batch.boxes[0]
        return PseudoLabels(cutmix(classes, box), cutmix(confidence, box), cutmix(entropy, box), weak)

    def targets(self, pseudo: PseudoLabels, iteration: int) -> Tensor:
        """The pseudo labels ``(B, H, W)`` that teach; the others are ignored."""
        return self.select(pseudo.classes, pseudo.confidence)

    def unsupervised_loss(self, logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
        """Cross entropy with the selected pseudo labels, averaged over all pixels of the images."""
        return selected_cross_entropy(logits, targets, valid)
