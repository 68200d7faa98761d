"""The prototype-contrastive loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brpg_lib.config import BRPGConfig
from brpg_lib.validation import describe, require, require_number

REDUCTIONS = ("mean", "sum", "none")


def prototype_contrastive_loss(
    similarity: Tensor,
    classes: Tensor,
    *,
    temperature: float = 0.1,
    weight: Tensor | None = None,
    misclassified_weight: float = 1.0,
    ignore_index: int = 255,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of class similarities divided by a temperature (the paper's L_pro, one of its two terms).

    Points do not count where their class is ``ignore_index`` or has no prototype (similarity -inf) or their similarity
    is not finite; without a point that counts, the loss is 0 with a gradient of 0.

    Args:
        similarity: ``(N, C)`` cosine similarity to each class, from :meth:`PrototypeBank.similarity`.
        classes: ``(N,)`` integers in 0..C-1, or ``ignore_index``.
        temperature: Divides the similarity.
        weight: ``(C,)`` weight of each class, as in :func:`torch.nn.functional.cross_entropy`.
        misclassified_weight: How many times a point counts whose most similar class is a wrong one.
        ignore_index: Class of points that do not count.
        reduction: ``"mean"`` weighted by the weights above, ``"sum"``, or ``"none"``.

    Returns:
        ``()`` float32, or ``(N,)`` with ``reduction="none"``.

    Raises:
        ValueError: A shape, dtype or option is wrong.
    """
    fits = isinstance(similarity, Tensor) and similarity.ndim == 2 and similarity.is_floating_point()
    require(fits, "similarity", "a floating-point tensor (N, C)", describe(similarity))
    fits = isinstance(classes, Tensor) and classes.shape == similarity.shape[:1] and not classes.is_floating_point()
    require(fits, "classes", f"integers ({similarity.shape[0]},)", describe(classes))
    require(reduction in REDUCTIONS, "reduction", f"one of {REDUCTIONS}", repr(reduction))
    require_number("temperature", temperature, 0.0, 1e6, open_low=True)
    require_number("misclassified_weight", misclassified_weight, 0.0, 1e6)
    num_classes = similarity.shape[1]
    if weight is not None:
        fits = isinstance(weight, Tensor) and weight.shape == (num_classes,)
        require(fits, "weight", f"a tensor ({num_classes},)", describe(weight))
    classes = classes.long()
    known = (classes >= 0) & (classes < num_classes) & (classes != ignore_index)
    target = torch.where(known, classes, 0)
    own = similarity.detach().gather(1, target[:, None])[:, 0]
    counted = known & own.isfinite() & (similarity.detach() < torch.inf).all(dim=1)
    logits = similarity.float().masked_fill(~counted[:, None], 0.0) / temperature
    losses = nn.functional.cross_entropy(logits, target, reduction="none")
    wrong = similarity.detach().argmax(dim=1) != target
    weights = torch.where(wrong, misclassified_weight, 1.0) * counted
    if weight is not None:
        weights = weights * weight.float()[target]
    weighted = losses * weights
    if reduction == "none":
        return weighted
    if reduction == "sum":
        return weighted.sum()
    total = weights.sum()
    return weighted.sum() / torch.where(total > 0, total, 1.0)


class PrototypeContrastiveLoss(nn.Module):
    """Module form of :func:`prototype_contrastive_loss`.

    Args:
        temperature: Divides the similarity.
        weight: ``(C,)`` weight of each class, or ``None``.
        misclassified_weight: How many times a point counts whose most similar class is a wrong one.
        ignore_index: Class of points that do not count.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        ValueError: An option is out of range.
    """

    weight: Tensor | None

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        weight: Tensor | None = None,
        misclassified_weight: float = 1.0,
        ignore_index: int = 255,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        require(reduction in REDUCTIONS, "reduction", f"one of {REDUCTIONS}", repr(reduction))
        self.config = BRPGConfig(
            temperature=temperature, misclassified_weight=misclassified_weight, ignore_index=ignore_index
        )
        self.reduction = reduction
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, similarity: Tensor, classes: Tensor) -> Tensor:
        """The loss of ``similarity (N, C)`` for ``classes (N,)``."""
        return prototype_contrastive_loss(
            similarity,
            classes,
            temperature=self.config.temperature,
            weight=self.weight,
            misclassified_weight=self.config.misclassified_weight,
            ignore_index=self.config.ignore_index,
            reduction=self.reduction,
        )
