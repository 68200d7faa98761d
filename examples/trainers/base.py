"""What every trainer shares: one network, perhaps a prototype head, and a supervised loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from brpg_lib import PrototypeHead
from brpg_lib.examples.data.batches import Batch
from brpg_lib.examples.networks.base import Segmenter
from brpg_lib.examples.trainers.losses import Loss, cross_entropy


class Trainer(nn.Module, ABC):
    """A semi-supervised framework: turns a batch into a loss.

    Being a module, its ``state_dict()`` holds everything that training changes, the head included.

    Args:
        model: The network to train.
        head: The prototype head, or None for the baseline.
        iterations: Iterations of the whole training.
        seed: Seed of the draws made in a step.

    Attributes:
        supervised_only: Share of the iterations before pseudo labels teach.
        supervised_loss: What the logits of labeled images are held to.
    """

    strong_views = 1
    supervised_only = 0.0

    def __init__(self, model: Segmenter, head: PrototypeHead | None, iterations: int, seed: int) -> None:
        super().__init__()
        self.model, self.head = model, head
        self.iterations, self.seed = iterations, seed
        self.supervised_loss: Loss = cross_entropy

    def forward(self, batch: Batch, iteration: int) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`step`; so that ``DistributedDataParallel`` can wrap the whole trainer."""
        return self.step(batch, iteration)

    @abstractmethod
    def step(self, batch: Batch, iteration: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to descend, and its parts by name."""

    def is_supervised(self, iteration: int) -> bool:
        """Whether pseudo labels do not teach yet."""
        return iteration < self.supervised_only * self.iterations

    def after_step(self, iteration: int) -> None:
        """Called after the optimizer has moved."""

    @property
    def evaluated(self) -> Segmenter:
        """The network to evaluate."""
        return self.model


@contextmanager
def untracked(model: nn.Module) -> Iterator[None]:
    """Batch norm uses the batch's statistics without remembering them.

    For strong views: their colors would spoil the running statistics that evaluation on clean images depends on.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
