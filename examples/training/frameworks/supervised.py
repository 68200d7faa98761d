"""Labeled images alone: the floor that a semi-supervised framework has to beat."""

from __future__ import annotations

from brpg_lib.examples.training.data.batches import Batch
from brpg_lib.examples.training.frameworks.base import Step, Trainer


class SupervisedTrainer(Trainer):
    """The supervised loss; with a head, prototypes of labeled pixels only."""

    strong_views = 0
    supervised_only = 1.0

    def semi_supervised_step(self, batch: Batch, iteration: int) -> Step:
        """There is no such step."""
        return self.supervised_step(batch)
