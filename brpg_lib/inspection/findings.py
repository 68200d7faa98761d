"""What there is to say of the prototypes of a head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brpg_lib.inspection.record import HeadRecord
from brpg_lib.learn.diagnostics import COLLAPSED, DEAD_AFTER, within_class_pairs


@dataclass(frozen=True)
class Findings:
    """Numbers of each class.

    Attributes:
        prototypes: ``(C, 2)`` int64 in each confidence group.
        dead: ``(C,)`` int64 prototypes that were for long not the nearest one to any point; None where unknown.
        collapsed: ``(C,)`` int64 prototypes that nearly equal another one of their class.
        similarity: ``(C, C)`` float32, the largest cosine of a prototype of one class and one of the other; -inf for
            classes without prototypes, 1 for a class and itself.
    """

    prototypes: Tensor
    dead: Tensor | None
    collapsed: Tensor
    similarity: Tensor

    def nearest(self, index: int) -> tuple[int, float] | None:
        """The class most similar to one, and their cosine; None where there is no other with prototypes."""
        others = self.similarity[index].clone()
        others[index] = -torch.inf
        cosine, best = others.max(dim=0)
        return (int(best), float(cosine)) if bool(cosine.isfinite()) else None

    def nearest_pairs(self, count: int) -> list[tuple[int, int, float]]:
        """The pairs of classes that are most similar, the nearest first."""
        above = self.similarity.masked_fill(torch.ones_like(self.similarity).tril().bool(), -torch.inf)
        cosines, places = above.flatten().sort(descending=True, stable=True)
        width = len(above)
        pairs = zip(cosines[:count].tolist(), places[:count].tolist(), strict=True)
        return [(place // width, place % width, cosine) for cosine, place in pairs if cosine > -torch.inf]


def find(head: HeadRecord) -> Findings:
    """Look at the prototypes.

    >>> from brpg_lib import PrototypeBank
    >>> bank = PrototypeBank(num_classes=2, feature_dim=3, num_prototypes=(1, 1), split_fraction=0.0)
    >>> bank.set(torch.eye(3)[:2].view(2, 1, 1, 3).repeat(1, 2, 1, 1), torch.ones(2, 2, 1, dtype=torch.bool))
    >>> found = find(HeadRecord("", bank.prototypes, bank.mask, None, None, None, None, {}))
    >>> found.collapsed, found.nearest(0)
    (tensor([1, 1]), (1, 0.0))
    """
    cosine, pairs = within_class_pairs(head.prototypes, head.mask)
    dead = None if head.idle is None else ((head.idle >= DEAD_AFTER) & head.mask).flatten(1).sum(1)
    collapsed = ((cosine > COLLAPSED) & pairs).any(1).sum(1)
    return Findings(head.mask.sum(2), dead, collapsed, class_similarity(head.prototypes, head.mask))


def class_similarity(prototypes: Tensor, mask: Tensor) -> Tensor:
    """See :class:`Findings`.

    Args:
        prototypes: ``(C, 2, K, D)`` float32.
        mask: ``(C, 2, K)`` bool.
    """
    directions = nn.functional.normalize(prototypes.flatten(1, 2), dim=2)
    exists = mask.flatten(1)
    rows = []
    for own, there in zip(directions, exists, strict=True):  # class by class: all pairs at once may be many
        cosine = (directions @ own[there].mT).amax(2) if bool(there.any()) else torch.full(exists.shape, -torch.inf)
        rows.append(cosine.masked_fill(~exists, -torch.inf).amax(1))
    found = torch.stack(rows)
    return torch.where(torch.eye(len(found)).bool() & found.isfinite(), 1.0, found)
