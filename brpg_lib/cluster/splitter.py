"""Adaptive prototype optimization: scattered classes get more prototypes (APO)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from brpg_lib.collect.queue import FeatureQueue
from brpg_lib.config import BRPGConfig
from brpg_lib.kernels.blocks import blocks
from brpg_lib.kernels.device import widest
from brpg_lib.keywords import with_checked_keywords
from brpg_lib.validation import require, require_instance, require_integer

_MIN_LENGTH = 1e-12


class Split(NamedTuple):
    """How many prototypes each class gets.

    Attributes:
        num_prototypes: ``(C, 2)`` int64 for the high and the low group.
        dispersion: ``(C, 2)`` float32; NaN where a queue is empty.
    """

    num_prototypes: Tensor
    dispersion: Tensor


@with_checked_keywords
class AdaptiveSplitter(nn.Module):
    """Gives the most scattered ``round(split_fraction * C)`` classes of each group more prototypes.

    At least one class is split, ties are all split, and classes with an empty queue never are. The groups choose
    independently. The dispersion of a queue is the mean over its features of: the cosine similarity to the mean of the
    raw features (``"cosine"``, low is scattered); the distance to that mean (``"l2"``); the same after both are
    normalized (``"l2_normalized"``).

    >>> from brpg_lib import FeatureQueue, Samples
    >>> queue = FeatureQueue(num_classes=2, feature_dim=3)
    >>> features = torch.cat((torch.rand(9, 3), torch.randn(9, 3)))  # the second class is scattered
    >>> classes, group = torch.tensor([0, 1]).repeat_interleave(9), torch.zeros(18, dtype=torch.long)
    >>> queue.append(Samples(features, classes, group, torch.ones(18), torch.tensor(0)))
    >>> AdaptiveSplitter(num_classes=2)(queue).num_prototypes  # high and low of each class
    tensor([[2, 2],
            [3, 2]])

    Args:
        num_classes: Number of classes C.
        num_prototypes: Prototypes per class in the (high, low) confidence group before the split.
        separate_confidence: ``False`` pools the high and the low group (the paper's ablation baseline).
        split_fraction: Share of the classes whose group gets more prototypes; 0 turns the split off.
        split_increment: Prototypes that a split adds.
        dispersion: What makes a class scattered: ``"cosine"``, ``"l2"`` or ``"l2_normalized"``.

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
        num_classes = require_integer("num_classes", num_classes, 1)
        self.num_classes = num_classes
        self.config = BRPGConfig(
            num_prototypes=num_prototypes,
            separate_confidence=separate_confidence,
            split_fraction=split_fraction,
            split_increment=split_increment,
            dispersion=dispersion,
        )

    @property
    def unsplit(self) -> Tensor:
        """Prototypes ``(2,)`` int64 of a class that is not split, on the CPU."""
        high, low = self.config.num_prototypes
        return torch.tensor([high, low] if self.config.separate_confidence else [high + low, 0], device="cpu")

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
        require_instance(
            "queue",
            queue,
            FeatureQueue,
            "a FeatureQueue",
        )
        require(queue.num_classes == self.num_classes, "queue", f"{self.num_classes} classes", queue.num_classes)
        require(
            queue.separate_confidence == config.separate_confidence,
            "queue",
            f"separate_confidence={config.separate_confidence}",
            queue.separate_confidence,
        )
        dispersion = _dispersion(queue, config.dispersion)
        counts = self.unsplit.to(dispersion.device).repeat(self.num_classes, 1)
        if config.separate_confidence and config.split_fraction > 0:
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
    valid = torch.arange(features.shape[1], device=features.device) < rows[:, None]
    wide = widest(features.device)
    divisor = rows.clamp(min=1)[:, None].to(wide)
    total = features.new_zeros(len(rows), 2, features.shape[2], dtype=wide)
    for place, block in blocks(features):
        length = torch.linalg.vector_norm(block, dim=-1).clamp(min=_MIN_LENGTH)
        total += torch.bmm(torch.stack((valid[:, place].float(), valid[:, place] / length), dim=1), block)
    mean, mean_direction = (total / divisor[..., None]).unbind(1)
    if kind == "cosine":  # the mean of the cosines is the cosine of the means, but for the length of one
        score = (mean_direction * nn.functional.normalize(mean, dim=-1)).sum(-1)
    else:
        target = mean if kind == "l2" else nn.functional.normalize(mean, dim=-1)
        score = _summed_distance(features, valid, target.float(), normalized=kind == "l2_normalized") / divisor[:, 0]
    return queue.per_group(torch.where(rows > 0, score, torch.nan).float(), fill=torch.nan)


def _summed_distance(features: Tensor, valid: Tensor, target: Tensor, *, normalized: bool) -> Tensor:
    """Sum ``(G,)`` of the distances of the valid rows, or of their directions, to ``target (G, D)``."""
    total = features.new_zeros(len(target), dtype=widest(features.device))
    for place, block in blocks(features):
        rows = nn.functional.normalize(block, dim=-1) if normalized else block
        total += (torch.linalg.vector_norm(rows - target[:, None], dim=-1) * valid[:, place]).sum(1)
    return total
