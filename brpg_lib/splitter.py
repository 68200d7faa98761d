"""Adaptive prototype optimization: scattered classes get more prototypes (the paper's APO)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from brpg_lib.config import BRPGConfig
from brpg_lib.queue import FeatureQueue
from brpg_lib.validation import require, require_integer

_BLOCK_BYTES = 64 * 2**20


class Split(NamedTuple):
    """How many prototypes each class gets.

    Attributes:
        num_prototypes: ``(C, 2)`` int64 for the high and the low group.
        dispersion: ``(C, 2)`` float32; NaN where a queue is empty.
    """

    num_prototypes: Tensor
    dispersion: Tensor


class AdaptiveSplitter(nn.Module):
    """Gives the most scattered ``round(split_fraction * C)`` classes of each group more prototypes.

    At least one class is split, ties are all split, and classes with an empty queue never are. The groups choose
    independently. The dispersion of a queue is the mean over its features of: the cosine similarity to the mean of the
    raw features (``"cosine"``, low is scattered); the distance to that mean (``"l2"``); the same after both are
    normalized (``"l2_normalized"``).

    Args:
        num_classes: Number of classes C.
        num_prototypes: See :class:`~brpg_lib.BRPGConfig`, like all further hyper-parameters.
        separate_confidence: See there.
        split_fraction: See there.
        split_increment: See there.
        dispersion: See there.

    Raises:
        ValueError: A hyper-parameter is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        num_prototypes: tuple[int, int] = (2, 2),
        separate_confidence: bool = True,
        split_fraction: float = 0.05,
        split_increment: int = 1,
        dispersion: str = "cosine",
    ) -> None:
        super().__init__()
        require_integer("num_classes", num_classes, 1)
        self.num_classes = num_classes
        self.config = BRPGConfig(
            num_prototypes=num_prototypes,
            separate_confidence=separate_confidence,
            split_fraction=split_fraction,
            split_increment=split_increment,
            dispersion=dispersion,
        )

    @torch.no_grad()
    def forward(self, queue: FeatureQueue) -> Split:
        """Measure every queue and decide.

        Args:
            queue: Feature queues of C classes.

        Returns:
            The number of prototypes of each class and group, and the dispersion that decided it.

        Raises:
            ValueError: The queue is of another number of classes, or pools the groups where the splitter does not.
        """
        config = self.config
        require(queue.num_classes == self.num_classes, "queue", f"{self.num_classes} classes", queue.num_classes)
        require(
            queue.separate_confidence == config.separate_confidence,
            "queue",
            f"separate_confidence={config.separate_confidence}",
            queue.separate_confidence,
        )
        dispersion = _dispersion(queue, config.dispersion)
        if not config.separate_confidence:
            pooled = torch.tensor([[sum(config.num_prototypes), 0]], device=dispersion.device)
            return Split(pooled.repeat(self.num_classes, 1), dispersion)
        counts = torch.tensor([config.num_prototypes], device=dispersion.device).repeat(self.num_classes, 1)
        if config.split_fraction > 0:
            num_split = max(1, round(config.split_fraction * self.num_classes))
            scatter = -dispersion if config.dispersion == "cosine" else dispersion
            scatter = scatter.nan_to_num(nan=-torch.inf)
            threshold = scatter.topk(min(num_split, self.num_classes), dim=0).values[-1]
            chosen = (scatter >= threshold) & scatter.isfinite()
            counts += config.split_increment * chosen.long()
        return Split(counts, dispersion)


def _dispersion(queue: FeatureQueue, kind: str) -> Tensor:
    """Dispersion ``(C, 2)`` float32, one block of rows of all queues at a time."""
    features, rows = queue.stored()
    num_queues, capacity, _ = features.shape
    valid = torch.arange(capacity, device=features.device) < rows[:, None]
    step = max(1, _BLOCK_BYTES // (4 * num_queues * features.shape[2]))
    starts = range(0, capacity, step)
    total = torch.zeros(num_queues, features.shape[2], dtype=torch.float64, device=features.device)
    for start in starts:
        total += features[:, start : start + step].float().sum(1)  # rows beyond the valid ones are zero
    mean = (total / rows.clamp(min=1)[:, None]).float()[:, None]
    target = mean if kind == "l2" else nn.functional.normalize(mean, dim=-1)
    score = torch.zeros(num_queues, dtype=torch.float64, device=features.device)
    for start in starts:
        block = features[:, start : start + step].float()
        if kind != "l2":
            block = nn.functional.normalize(block, dim=-1)
        values = (block * target).sum(-1) if kind == "cosine" else torch.linalg.vector_norm(block - target, dim=-1)
        score += (values * valid[:, start : start + step]).sum(1)
    mean_score = torch.where(rows > 0, score / rows, torch.nan).float()
    return queue.per_group(mean_score, fill=torch.nan)
