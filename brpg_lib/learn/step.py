"""The learn step in two halves, between which ranks exchange sums: measure touches no state, finish knows all ranks."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from brpg_lib.batches import LabeledBatch, UnlabeledBatch
from brpg_lib.cluster.bank import PrototypeBank
from brpg_lib.config import BRPGConfig
from brpg_lib.kernels.random import fold
from brpg_lib.kernels.segments import sums_by_index
from brpg_lib.learn import diagnostics
from brpg_lib.learn.loss import PrototypeContrastiveLoss, balanced_mean
from brpg_lib.learn.points import Points, grid_of, labeled_points, unlabeled_points
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


def measure(
    labeled: LabeledBatch,
    unlabeled: UnlabeledBatch | None,
    threshold: Tensor,
    draw: tuple[Tensor, int, int],
    bank: PrototypeBank,
    criterion: PrototypeContrastiveLoss,
    config: BRPGConfig,
    *,
    shown: Tensor,
    confidence: Tensor,
) -> Measured:
    """Compare the points of a step with the prototypes.

    Args:
        labeled: Labeled images.
        unlabeled: Unlabeled images, if there are any.
        threshold: Confidence that a pseudo label needs: ``()``, or ``(C,)`` of each class.
        draw: ``()`` int64 iteration, seed and rank: which pseudo-labeled pixels are drawn.
        bank: The prototypes.
        criterion: The loss.
        config: Hyper-parameters.
        shown: ``(C,)`` float32, see :class:`~brpg_lib.ranks.exchange.StepSums`.
        confidence: ``(n,)`` float32, likewise.
    """
    kernels = bank.kernels if labeled.features.ndim == 4 else None
    if kernels is not None:
        found = _in_few_launches(kernels, labeled, unlabeled, threshold, draw, bank, config)
    else:
        points = points_of(labeled, unlabeled, threshold, fold(*draw), bank.num_classes, config)
        found = _point_by_point(points, len(points[0].classes), bank, criterion)
    terms, pull, hits, counts, dropped = found
    sums = StepSums(
        pull=pull,
        hits=hits,
        terms=terms.detach(),
        counts=counts,
        shown=shown,
        dropped=dropped,
        confidence=confidence,
    )
    return Measured(terms, sums)


def points_of(
    labeled: LabeledBatch,
    unlabeled: UnlabeledBatch | None,
    threshold: Tensor,
    key: Tensor,
    num_classes: int,
    config: BRPGConfig,
) -> list[Points]:
    """The points of a step, labeled ones first; ``key`` is the ``()`` int64 seed of the draw."""
    common: dict[str, Any] = {
        "num_classes": num_classes,
        "align_corners": config.align_corners,
        "ignore_index": config.ignore_index,
    }
    parts = [labeled_points(labeled, grid_size=config.grid_size, **common)]
    if unlabeled is not None:
        most = config.unlabeled_samples_per_image
        parts.append(unlabeled_points(unlabeled, threshold, key, samples_per_image=most, **common))
    return parts


def _point_by_point(
    parts: list[Points], num_labeled: int, bank: PrototypeBank, criterion: PrototypeContrastiveLoss
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Terms, pull, hits, counts and dropped points of :class:`StepSums`. Empties ``parts``: features are copied."""
    dropped = torch.stack([part.dropped for part in parts]).sum().float()
    features, classes = torch.cat([part.features for part in parts]), torch.cat([part.classes for part in parts])
    parts.clear()
    unlabeled = torch.arange(len(classes), device=classes.device) >= num_labeled
    similarity, cosine = bank.compare(features)
    predicted = similarity.detach().argmax(dim=1)
    nearest, counted = bank.assign(cosine, classes)
    terms = criterion.sums(similarity, classes, predicted, unlabeled)
    pull = bank.pull(features, predicted, nearest, counted)
    hits = sums_by_index(counted.float()[:, None], nearest, bank.mask.numel())[:, 0]
    return terms, pull, hits, diagnostics.points(predicted, classes, bank.num_classes, unlabeled), dropped


def _in_few_launches(
    kernels: ModuleType,
    labeled: LabeledBatch,
    unlabeled: UnlabeledBatch | None,
    threshold: Tensor,
    draw: tuple[Tensor, int, int],
    bank: PrototypeBank,
    config: BRPGConfig,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same by kernels that do many of these operations at once."""
    sizes = labeled.labels.shape
    (rows, row_step), (columns, column_step) = (grid_of(length, config.grid_size) for length in sizes[1:])
    where = [kernels.Where(labeled.labels, None, None, (rows, columns, row_step, column_step))]
    maps = [labeled.features]
    if unlabeled is not None:
        labels, confidence = unlabeled.pseudo_labels.contiguous(), unlabeled.confidence.contiguous()
        scores = kernels.scores(labels.flatten(), confidence.flatten(), threshold, draw, bank.num_classes)
        count = min(len(labels) * config.unlabeled_samples_per_image, len(scores))
        pixels = scores.topk(count, sorted=False).indices.sort().values  # image by image, they are read faster
        where.append(kernels.Where(labels, pixels, scores, (0, 0, 0, 0)))
        maps.append(unlabeled.features)
    read = kernels.read_points(
        maps,
        where,
        align_corners=config.align_corners,
        num_classes=bank.num_classes,
        ignore_index=config.ignore_index,
    )
    options = kernels.Options(
        bank.num_classes, bank.mask[0].numel(), where[0].number, config.temperature, config.misclassified_weight
    )
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = kernels.compare_points(
        read, kernels.directions(bank.prototypes), bank.mask.flatten(), options
    )
    return found


@torch.no_grad()
def follow(bank: PrototypeBank, idle: Tensor, total: StepSums) -> Tensor:
    """Move the prototypes, and count since when each was not the nearest one to any point.

    Args:
        bank: Changed.
        idle: ``(C, 2, K)`` int64, changed.
        total: The sums over all ranks.

    Returns:
        ``()`` float32, share of the prototypes with points.
    """
    kernels = bank.kernels
    if kernels is not None:
        used: Tensor = kernels.move(bank.prototypes, bank.mask, idle, total.pull, total.hits, bank.momentum)
        return used
    hit, expected = diagnostics.used(total.hits, bank.mask)
    idle.copy_(torch.where(hit, 0, idle + expected))
    bank.move(total.pull)
    return diagnostics.share_used(hit, expected)


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
        own = mean + (own - own.detach())  # exactly the mean
    return Losses(own[0], own[1], metrics)


def no_losses(labeled: LabeledBatch, unlabeled: UnlabeledBatch | None) -> Losses:
    """Zero losses that still reach every feature map, so that DDP finds all parameters used."""
    zeros = [batch.features[:0].float().sum() for batch in (labeled, unlabeled) if batch is not None]
    nothing = torch.zeros((), dtype=torch.float32, device=labeled.features.device)
    metrics = {name: nothing.clone() for name in LEARN_METRICS}
    return Losses(zeros[0], zeros[1] if len(zeros) > 1 else nothing, metrics)
