"""One step of the collect phase."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from brpg_lib.batches import LabeledBatch, UnlabeledBatch
from brpg_lib.collect.queue import FeatureQueue
from brpg_lib.collect.sampler import ConfidenceSampler
from brpg_lib.collect.samples import NONE, Samples
from brpg_lib.kernels import fused
from brpg_lib.ranks.collectives import ProcessGroup, all_reduce_sum, gather_rows, world_size


def collect(
    sampler: ConfidenceSampler,
    queue: FeatureQueue,
    labeled: LabeledBatch,
    unlabeled: UnlabeledBatch | None,
    group: ProcessGroup,
    wanted: Tensor | None = None,
) -> Tensor:
    """Sample the images of all ranks and append the samples to the queues.

    Labeled rows of all ranks come before unlabeled ones, as they would in one process with the images of all.

    Args:
        sampler: Chooses the pixels.
        queue: Takes them.
        labeled: Labeled images of this rank.
        unlabeled: Unlabeled ones, if there are any.
        group: The ranks.
        wanted: ``(C,)`` bool, classes whose rows are appended, in as much memory as they need; None for all.

    Returns:
        ``()`` int64, pixels left out because they were not finite.
    """
    dim = labeled.features.shape[1]
    kernels = fused.kernels_for(labeled.features.device, dim, queue.num_classes, queue.num_groups)
    alone = world_size(group) == 1 and queue.features.device == labeled.features.device
    plain = queue.fallback_capacity == 0 and wanted is None
    if kernels is not None and labeled.features.ndim == 4 and alone and plain:
        return _in_few_launches(kernels, sampler, queue, labeled, unlabeled)
    refused = queue.dropped.clone()
    parts = sampler.sample(labeled, unlabeled)
    for part in parts:
        chosen = part if wanted is None else part.of_classes(wanted)
        rows = _of_all_ranks(_worth_moving(chosen, queue, group), group)
        queue.add(rows, as_needed=wanted is not None)
    lost = all_reduce_sum(parts[0].dropped + parts[1].dropped, group)
    return lost + (queue.dropped - refused).to(lost.device)


@torch.no_grad()
def _in_few_launches(
    kernels: ModuleType,
    sampler: ConfidenceSampler,
    queue: FeatureQueue,
    labeled: LabeledBatch,
    unlabeled: UnlabeledBatch | None,
) -> Tensor:
    """The same by kernels that read features where they are, and write them where they go."""
    assert labeled.logits is not None
    sampler.begin(labeled)
    maps, logits = [labeled.features.detach()], [labeled.logits.detach()]
    if unlabeled is not None and unlabeled.weak_features is not None and unlabeled.weak_logits is not None:
        maps.append(unlabeled.weak_features.detach())
        logits.append(unlabeled.weak_logits.detach())
    sizes = [values.shape[0] * values.shape[2] * values.shape[3] for values in maps]
    found = kernels.Candidates.empty(sum(sizes), queue.features.device)
    own = sampler.class_thresholds(), sampler.floor, labeled.labels, None
    kernels.judge_pixels(found, 0, maps[0], logits[0], *own, queue.dtype)
    if len(maps) > 1:
        assert unlabeled is not None
        constant = torch.full_like(sampler.thresholds, sampler.config.confidence_threshold)
        others = constant, 0.0, None, unlabeled.weak_valid
        kernels.judge_pixels(found, sizes[0], maps[1], logits[1], *others, queue.dtype)
    images = [labeled.num_images, *(len(values) for values in maps[1:])]
    groups = sampler.under_caps(found.groups, found.classes, images)
    found = found._replace(groups=groups)
    sampler.end()
    refused = ((groups != NONE) & (found.refused > 0)).sum()
    queue.take(kernels, maps, found, refused)
    lost: Tensor = found.lost.sum() + refused
    return lost


def _worth_moving(samples: Samples, queue: FeatureQueue, group: ProcessGroup) -> Samples:
    """Where samples go to other ranks or another device, which the host waits for anyway, only those that count."""
    stay = world_size(group) == 1 and queue.features.device == samples.features.device
    return samples if stay else samples.without_gaps()


def _of_all_ranks(samples: Samples, group: ProcessGroup) -> Samples:
    """The samples of all ranks, in rank order."""
    if world_size(group) == 1:
        return samples
    features, *numbers = samples.rows
    packed = torch.cat((features.float(), torch.stack([values.float() for values in numbers], dim=1)), dim=1)
    packed = torch.cat(gather_rows(packed, group))
    features, classes, groups, confidence = packed.split((features.shape[1], 1, 1, 1), dim=1)
    return Samples(features, classes[:, 0].long(), groups[:, 0].long(), confidence[:, 0], samples.dropped)


def classes_in(labels: Tensor, num_classes: int) -> Tensor:
    """Which classes ``labels (B, H, W)`` show: ``(C,)`` float32, 1 or 0."""
    place = labels.long().flatten() + 1
    inside = place.clamp(0, num_classes + 1)  # what is below the first class, or above the last
    return torch.zeros(num_classes + 2, dtype=torch.float32, device=labels.device).index_fill_(0, inside, 1.0)[1:-1]
