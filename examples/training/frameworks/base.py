"""What every trainer shares: a network and its moving average, perhaps a prototype head, and a supervised loss."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from brpg_lib import LabeledBatch, Phase, PrototypeHead
from brpg_lib.examples.training.data.augment import IGNORE_INDEX
from brpg_lib.examples.training.data.batches import Batch
from brpg_lib.examples.training.frameworks.losses import Loss, cross_entropy
from brpg_lib.examples.training.frameworks.second_opinion import with_second_opinion
from brpg_lib.examples.training.frameworks.selection import most_reliable
from brpg_lib.examples.training.networks.base import Prediction, Segmenter
from brpg_lib.learn.limits import ClassLimits

Step = tuple[Tensor, dict[str, Tensor]]
"""The loss to descend, and its parts by name."""


class Trainer(nn.Module, ABC):
    """A framework: turns a batch into a loss.

    Being a module, its ``state_dict()`` holds everything that training changes, the head included.

    Args:
        model: The network to train.
        head: The prototype head, or None for the baseline.
        iterations: Iterations of the whole training.
        seed: Seed of the draws made in a step.

    Attributes:
        average: Exponential moving average of the network: parameters, and the statistics of batch norm.
        strong_views: Strong views of each unlabeled image; with 0, unlabeled images are not read.
        colors: Whether strong views differ in color and sharpness too, or are mixed only.
        supervised_only: Share of the iterations before pseudo labels teach.
        supervised_loss: What the logits of labeled images are held to.
        threshold: Confidence that a pseudo label needs to teach.
        limits: Choose the pseudo labels that teach, of each class the most reliable ones, in place of the framework's
            own rule; None keeps that.
        second_opinion: How the head's prototypes change the pseudo labels, one of
            :data:`~brpg_lib.examples.training.frameworks.second_opinion.KINDS`; None, as published, lets them be.
        decay: Of the average, at most; early on, it forgets faster.
    """

    strong_views = 1
    colors = False
    supervised_only = 0.1
    decay = 0.99
    threshold = 0.95

    def __init__(self, model: Segmenter, head: PrototypeHead | None, iterations: int, seed: int) -> None:
        super().__init__()
        self.model, self.head = model, head
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.iterations, self.seed = iterations, seed
        self.supervised_loss: Loss = cross_entropy
        self.limits: ClassLimits | None = None
        self.second_opinion: str | None = None

    def train(self, mode: bool = True) -> Trainer:
        """Train mode, but for the average: batch norm uses its statistics in every pass."""
        super().train(mode)
        self.average.eval()
        return self

    def forward(self, batch: Batch, iteration: int) -> Step:
        """See :meth:`step`; so that ``DistributedDataParallel`` can wrap the whole trainer."""
        return self.step(batch, iteration)

    def step(self, batch: Batch, iteration: int) -> Step:
        """The losses of one iteration."""
        if iteration < self.supervised_only * self.iterations:
            return self.supervised_step(batch)
        return self.semi_supervised_step(batch, iteration)

    def supervised_step(self, batch: Batch) -> Step:
        """Supervised loss, and prototypes of labeled pixels only."""
        clean = self.model(batch.images, features=len(batch.images) if self.head is not None else 0)
        parts = {"supervised": self.supervised_loss(clean.logits, batch.labels)}
        loss = parts["supervised"]
        if self.head is not None:
            out = self.head(LabeledBatch(features=clean.features, logits=clean.low_logits, labels=batch.labels))
            parts["prototype"] = out.loss
            loss = loss + out.loss
        return loss, parts

    @abstractmethod
    def semi_supervised_step(self, batch: Batch, iteration: int) -> Step:
        """The losses of one iteration in which unlabeled images teach."""

    def select(self, classes: Tensor, confidence: Tensor) -> Tensor:
        """Pseudo labels ``(B, H, W)`` that teach; the others are ignored."""
        if self.limits is not None:
            return most_reliable(self.limits, classes, confidence)
        return classes.masked_fill(confidence < self.threshold, IGNORE_INDEX)

    @property
    def needs_weak_features(self) -> bool:
        """Whether somebody reads the features of the weak view in this step."""
        if self.head is None:
            return False
        return self.head.samples_weak_views or (self.second_opinion is not None and self.head.phase is Phase.LEARN)

    def judged(self, probability: Tensor, weak: Prediction) -> Tensor:
        """The teacher's probabilities ``(B, C, H, W)``, after the prototypes were asked if they are."""
        if self.head is None or self.second_opinion is None:
            return probability
        return with_second_opinion(probability, weak, self.head, self.second_opinion)

    @torch.no_grad()
    def after_step(self, iteration: int) -> None:
        """Called after the optimizer has moved: moves the average a little towards the network."""
        share = 1 - min(self.decay, (1 + iteration) / (10 + iteration))
        pairs = list(zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True))
        floating = [(average, now) for average, now in pairs if average.is_floating_point()]
        averages, nows = map(list, zip(*floating, strict=True))
        torch._foreach_lerp_(averages, nows, share)  # all at once
        for average, now in pairs:
            if not average.is_floating_point():
                average.copy_(now)


def weak_view(features: Tensor | None, logits: Tensor, batch: Batch) -> dict[str, Any]:
    """What an :class:`~brpg_lib.UnlabeledBatch` says of the weak view; nothing where the head does not sample it."""
    if features is None:
        return {}
    return {"weak_features": features, "weak_logits": logits, "weak_valid": ~batch.padding}
