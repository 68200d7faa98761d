"""What every trainer shares: one network, perhaps a prototype head, and a supervised loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from brpg_lib import PrototypeHead
from brpg_lib.examples.data.augment import IGNORE_INDEX
from brpg_lib.examples.data.batches import Batch
from brpg_lib.examples.networks.base import Segmenter


class Trainer(nn.Module, ABC):
    """A semi-supervised framework: turns a batch into a loss.

    Being a module, its ``state_dict()`` holds everything that training changes, the head included.

    Args:
        model: The network to train.
        head: The prototype head, or None for the baseline.
        iterations: Iterations of the whole training.
        seed: Seed of the draws made in a step.
    """

    strong_views = 1

    def __init__(self, model: Segmenter, head: PrototypeHead | None, iterations: int, seed: int) -> None:
        super().__init__()
        self.model, self.head = model, head
        self.iterations, self.seed = iterations, seed

    @abstractmethod
    def step(self, batch: Batch, iteration: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to descend, and its parts by name."""

    def after_step(self, iteration: int) -> None:
        """Called after the optimizer has moved."""

    @property
    def evaluated(self) -> Segmenter:
        """The network to evaluate."""
        return self.model


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy averaged over the pixels that are not ignored; 0 with gradient if there are none."""
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (labels != IGNORE_INDEX).sum().clamp(min=1)


@contextmanager
def untracked(model: nn.Module) -> Iterator[None]:
    """Batch norm uses the batch's statistics without remembering them.

    For strong views: their colors would spoil the running statistics that evaluation on clean images depends on.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
