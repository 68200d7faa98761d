"""The prototype-contrastive loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from brpg_lib.config import BRPGConfig
from brpg_lib.kernels.classes import known_classes
from brpg_lib.kernels.segments import sums_by_index
from brpg_lib.keywords import with_checked_keywords
from brpg_lib.validation import (
    MAX_SIZE,
    is_integer,
    require,
    require_choice,
    require_integer,
    require_number,
    require_tensor,
)

REDUCTIONS = ("mean", "sum", "none")


def prototype_contrastive_loss(
    similarity: Tensor,
    classes: Tensor,
    *,
    temperature: float = 0.1,
    weight: Tensor | None = None,
    misclassified_weight: float = 1.0,
    point_balance: float = 0.0,
    ignore_index: int = 255,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of class similarities divided by a temperature (the paper's L_pro, one of its two terms).

    >>> similarity = torch.tensor([[0.9, 0.1], [0.2, 0.8]])  # of two points to two classes
    >>> prototype_contrastive_loss(similarity, torch.tensor([0, 1]), temperature=0.5).item()
    0.22...

    Points do not count where their class is ``ignore_index`` or has no prototype (similarity -inf) or their similarity
    is not finite; without a point that counts, the loss is 0 with a gradient of 0.

    Args:
        similarity: ``(N, C)`` cosine similarity to each class, from :meth:`PrototypeBank.similarity`.
        classes: ``(N,)`` integers in 0..C-1, or ``ignore_index``.
        temperature: Divides the similarity.
        weight: ``(C,)`` weight of each class, as in :func:`torch.nn.functional.cross_entropy`.
        misclassified_weight: How many times a point counts whose most similar class is a wrong one.
        point_balance: Exponent ``e`` of each class's weight ``1 / (weight of its points) ** e`` in the mean: 0 for the
            mean over points, as published; 1 for the mean over classes of the mean over their points.
        ignore_index: Class of points that do not count.
        reduction: ``"mean"`` weighted by the weights above, ``"sum"``, or ``"none"``; the last two know no balance.

    Returns:
        ``()`` float32, or ``(N,)`` with ``reduction="none"``.

    Raises:
        ValueError: A shape, dtype or option is wrong.
    """
    fits = isinstance(similarity, Tensor) and similarity.ndim == 2 and similarity.is_floating_point()
    fits = fits and similarity.shape[1] > 0 and not similarity.is_meta
    require_tensor(fits, "similarity", "a floating-point tensor (N, C)", similarity)
    fits = isinstance(classes, Tensor) and classes.shape == similarity.shape[:1] and is_integer(classes)
    fits = fits and classes.device == similarity.device
    require_tensor(fits, "classes", f"integers ({similarity.shape[0]},) beside the similarity", classes)
    require_choice("reduction", reduction, REDUCTIONS)
    ignore_index = require_integer("ignore_index", ignore_index, -MAX_SIZE, MAX_SIZE)
    temperature = require_number("temperature", temperature, 0.0, 1e6, open_low=True)
    misclassified_weight = require_number("misclassified_weight", misclassified_weight, 0.0, 1e6)
    point_balance = require_number("point_balance", point_balance, 0.0, 10.0)
    num_classes = similarity.shape[1]
    if weight is not None:
        fits = isinstance(weight, Tensor) and weight.shape == (num_classes,) and weight.device == similarity.device
        require_tensor(fits, "weight", f"a tensor ({num_classes},) on {similarity.device}", weight)
        _require_weights(weight)
    losses, weights = weighted_losses(
        similarity,
        classes,
        temperature=temperature,
        weight=weight,
        misclassified_weight=misclassified_weight,
        ignore_index=ignore_index,
    )
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    sums = class_sums(losses, weights, classes, num_classes)
    return balanced_mean(sums, sums.detach(), point_balance)


def _require_weights(weight: Tensor) -> None:
    """Require finite weights of classes, where reading them costs nothing."""
    require_tensor(not weight.is_complex(), "weight", "real numbers", weight)
    if weight.device.type == "cpu" and not torch.compiler.is_compiling():
        bad = weight[~((weight >= 0) & weight.isfinite())]
        require(not len(bad), "weight", "finite numbers >= 0", bad[:3].tolist())


def class_sums(losses: Tensor, weights: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Losses and weights ``(N,)`` of :func:`weighted_losses`, added up by class: ``(C, 2)`` float32."""
    target, _ = known_classes(classes, num_classes)  # a point of no class has no weight
    return sums_by_index(torch.stack((losses, weights), dim=1), target, num_classes)


def balanced_mean(own: Tensor, everywhere: Tensor, point_balance: float) -> Tensor:
    """One rank's part of the mean loss over the points of all ranks.

    Args:
        own: ``(..., C, 2)`` from :func:`class_sums`, differentiable.
        everywhere: ``(..., C, 2)``, the same summed over all ranks, without gradient.
        point_balance: See :func:`prototype_contrastive_loss`.

    Returns:
        ``(...)`` float32; 0, with a gradient of 0, where no point counts.
    """
    losses, weight = own[..., 0], everywhere[..., 1]
    if point_balance:  # a class of weight 0 keeps a factor of 1, so that its points keep a gradient of 0
        factor = weight.masked_fill(weight <= 0, 1.0) ** -point_balance
        losses, weight = factor * losses, factor * weight
    total = weight.sum(-1)
    return losses.sum(-1) / total.masked_fill(total <= 0, 1.0)


def weighted_losses(
    similarity: Tensor,
    classes: Tensor,
    *,
    temperature: float,
    weight: Tensor | None,
    misclassified_weight: float,
    ignore_index: int,
    predicted: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The parts of :func:`prototype_contrastive_loss`, which says what the arguments are.

    ``predicted (N,)`` is the most similar class of each point, where it is known already.

    Returns:
        ``(N,)`` float32 loss of each point times its weight, and ``(N,)`` float32 weights; 0 where it does not count.
    """
    num_classes = similarity.shape[1]
    predicted = similarity.detach().argmax(dim=1) if predicted is None else predicted
    target, known = known_classes(classes, num_classes)
    known = known & (classes != ignore_index)
    own = similarity.detach().gather(1, target[:, None])[:, 0]
    counted = known & own.isfinite() & (similarity.detach() < torch.inf).all(dim=1)
    logits = similarity.float().masked_fill(~counted[:, None], 0.0) / temperature
    losses = nn.functional.cross_entropy(logits, target, reduction="none")
    weights = counted.float()
    if misclassified_weight != 1:
        weights = torch.where(predicted != target, misclassified_weight * weights, weights)
    if weight is not None:
        weights = weights * weight.float()[target]
    return losses * weights, weights


@with_checked_keywords
class PrototypeContrastiveLoss(nn.Module):
    """Module form of :func:`prototype_contrastive_loss`.

    >>> criterion = PrototypeContrastiveLoss(temperature=0.5)
    >>> criterion(torch.tensor([[0.9, 0.1]]), torch.tensor([255]))  # nothing but ignored points
    tensor(0.)

    Args:
        temperature: Divides the similarity.
        weight: ``(C,)`` weight of each class, or ``None``.
        misclassified_weight: How many times a point counts whose most similar class is a wrong one.
        point_balance: Exponent of the balance between classes in the mean.
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
        point_balance: float = 0.0,
        ignore_index: int = 255,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        require_choice("reduction", reduction, REDUCTIONS)
        self.config = BRPGConfig(
            temperature=temperature,
            misclassified_weight=misclassified_weight,
            point_balance=point_balance,
            ignore_index=ignore_index,
        )
        if weight is not None:
            require_tensor(isinstance(weight, Tensor) and weight.ndim == 1, "weight", "a tensor (C,)", weight)
            _require_weights(weight)
        self.reduction = reduction
        self.register_buffer("weight", weight, persistent=False)

    def sums(self, similarity: Tensor, classes: Tensor, predicted: Tensor, unlabeled: Tensor) -> Tensor:
        """Numerator and denominator of each class's mean over labeled and over unlabeled points.

        Ranks that share a mean add them up.

        Args:
            similarity: ``(N, C)``.
            classes: ``(N,)`` integers.
            predicted: ``(N,)`` int64, the most similar class.
            unlabeled: ``(N,)`` bool.

        Returns:
            ``(2, C, 2)`` float32.
        """
        num_classes = similarity.shape[1]
        losses, weights = weighted_losses(similarity, classes, **self._options(), predicted=predicted)
        target, _ = known_classes(classes, num_classes)
        both = torch.stack((losses, weights), dim=1)
        return sums_by_index(both, target + num_classes * unlabeled, 2 * num_classes).view(2, num_classes, 2)

    def forward(self, similarity: Tensor, classes: Tensor) -> Tensor:
        """The loss of ``similarity (N, C)`` for ``classes (N,)``."""
        balance = self.config.point_balance
        return prototype_contrastive_loss(
            similarity, classes, **self._options(), point_balance=balance, reduction=self.reduction
        )

    def _options(self) -> dict[str, Any]:
        """What the functions above take, as this module was made."""
        return {
            "temperature": self.config.temperature,
            "weight": self.weight,
            "misclassified_weight": self.config.misclassified_weight,
            "ignore_index": self.config.ignore_index,
        }
