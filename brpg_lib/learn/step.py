"""The learn step in two halves, between which ranks exchange sums: measure touches no state, finish knows all ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from brpg_lib.batches import LabeledBatch, UnlabeledBatch
from brpg_lib.cluster.bank import PrototypeBank
from brpg_lib.config import BRPGConfig
from brpg_lib.kernels.segments import sums_by_index
from brpg_lib.learn import diagnostics
from brpg_lib.learn.loss import PrototypeContrastiveLoss, balanced_mean
from brpg_lib.learn.points import Points, labeled_points, unlabeled_points
from brpg_lib.output import METRICS
from brpg_lib.ranks.exchange import StepSums


class Measured(NamedTuple):
    """What a rank has found.

    Attributes:
        terms: ``(2, C, 2)`` float32, differentiable: loss and weight of the labeled and unlabeled points of each class.
        sums: What the ranks add up.
    """

    terms: Tensor
    sums: StepSums


class Losses(NamedTuple):
    """What a step comes to.

    Attributes:
        labeled: ``()`` float32, mean over all ranks' points, of which this rank's have a gradient.
        unlabeled: Likewise.
        metrics: By name, see :data:`brpg_lib.output.METRICS`.
    """

    labeled: Tensor
    unlabeled: Tensor
    metrics: dict[str, Tensor]


LEARN_METRICS = tuple(name for name, metric in METRICS.items() if metric.phases == "learn")


def points_of(
    labeled: LabeledBatch,
    unlabeled: UnlabeledBatch | None,
    threshold: Tensor,
    key: Tensor,
    num_classes: int,
    config: BRPGConfig,
) -> list[Points]:
    """The points of a step, labeled ones first.

    Args:
        labeled: Labeled images.
        unlabeled: Unlabeled images, if there are any.
        threshold: Confidence that a pseudo label needs: ``()``, or ``(C,)`` of each class.
        key: ``()`` int64 seed of the draw.
        num_classes: Number of classes C.
        config: Hyper-parameters.
    """
    parts = [
        labeled_points(
            labeled,
            num_classes=num_classes,
            grid_size=config.grid_size,
            align_corners=config.align_corners,
            ignore_index=config.ignore_index,
        )
    ]
    if unlabeled is not None:
        parts.append(
            unlabeled_points(
                unlabeled,
                threshold,
                key,
                num_classes=num_classes,
                samples_per_image=config.unlabeled_samples_per_image,
                align_corners=config.align_corners,
                ignore_index=config.ignore_index,
            )
        )
    return parts


def measure(
    parts: list[Points],
    bank: PrototypeBank,
    criterion: PrototypeContrastiveLoss,
    *,
    shown: Tensor,
    confidence: Tensor,
) -> Measured:
    """Compare the points of a step with the prototypes.

    Args:
        parts: From :func:`points_of`; emptied, as their features are copied.
        bank: The prototypes.
        criterion: The loss.
        shown: ``(C,)`` float32, see :class:`~brpg_lib.ranks.exchange.StepSums`.
        confidence: ``(n,)`` float32, likewise.
    """
    num_labeled = len(parts[0].classes)
    dropped = torch.stack([part.dropped for part in parts]).sum().float()
    features, classes = torch.cat([part.features for part in parts]), torch.cat([part.classes for part in parts])
    parts.clear()
    unlabeled = torch.arange(len(classes), device=classes.device) >= num_labeled
    similarity, cosine = bank.compare(features)
    predicted = similarity.detach().argmax(dim=1)
    nearest, counted = bank.assign(cosine, classes)
    terms = criterion.sums(similarity, classes, predicted, unlabeled)
    sums = StepSums(
        pull=bank.pull(features, predicted, nearest, counted),
        hits=sums_by_index(counted.float()[:, None], nearest, bank.mask.numel())[:, 0],
        terms=terms.detach(),
        counts=diagnostics.points(predicted, classes, bank.num_classes, unlabeled),
        shown=shown,
        dropped=dropped,
        confidence=confidence,
    )
    return Measured(terms, sums)


def finish(terms: Tensor, total: StepSums, used: Tensor, point_balance: float, ranks: int) -> Losses:
    """Losses and metrics of a step.

    Args:
        terms: From :func:`measure`.
        total: The sums over all ranks.
        used: ``()`` float32, share of the prototypes with points.
        point_balance: Exponent of each class's weight in the mean, see :class:`~brpg_lib.BRPGConfig`.
        ranks: By how many DDP divides the gradient.
    """
    count, right = total.counts.clone().unbind(1)  # or a metric that is kept would keep all sums
    own = balanced_mean(terms, total.terms, point_balance)
    mean = own.detach().clone() if ranks == 1 else balanced_mean(total.terms, total.terms, point_balance)
    accuracy = right / count.clamp(min=1)
    metrics = {
        "loss_labeled": mean[0],
        "loss_unlabeled": mean[1],
        "points_labeled": count[0],
        "points_unlabeled": count[1],
        "accuracy_labeled": accuracy[0],
        "accuracy_unlabeled": accuracy[1],
        "prototypes_used": used,
    }
    if ranks > 1:  # the value of all ranks with the gradient of this one, which DDP divides by their number
        own = ranks * own
        own = own + (mean - own).detach()
    return Losses(own[0], own[1], metrics)


def no_losses(labeled: LabeledBatch, unlabeled: UnlabeledBatch | None) -> Losses:
    """Zero losses that still reach every feature map, so that DDP finds all parameters used."""
    zeros = [batch.features[:0].float().sum() for batch in (labeled, unlabeled) if batch is not None]
    nothing = torch.zeros((), device=labeled.features.device)
    metrics = {name: nothing.clone() for name in LEARN_METRICS}
    return Losses(zeros[0], zeros[1] if len(zeros) > 1 else nothing, metrics)
