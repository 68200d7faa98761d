"""One step of the collect phase."""

from __future__ import annotations

import torch
from torch import Tensor

from brpg_lib.batches import LabeledBatch, UnlabeledBatch
from brpg_lib.collect.queue import FeatureQueue
from brpg_lib.collect.sampler import ConfidenceSampler
from brpg_lib.collect.samples import Samples
from brpg_lib.kernels.classes import known_classes
from brpg_lib.ranks.collectives import ProcessGroup, all_reduce_sum, gather_rows, world_size


def collect(
    sampler: ConfidenceSampler,
    queue: FeatureQueue,
    labeled: LabeledBatch,
    unlabeled: UnlabeledBatch | None,
    group: ProcessGroup,
) -> Tensor:
    """Sample the images of all ranks and append the samples to the queues.

    Labeled rows of all ranks come before unlabeled ones, as they would in one process with the images of all.

    Returns:
        ``()`` int64, pixels left out because they were not finite.
    """
    refused = queue.dropped.clone()
    parts = sampler.sample(labeled, unlabeled)
    for part in parts:
        queue.append(_of_all_ranks(part, group))
    lost = all_reduce_sum(parts[0].dropped + parts[1].dropped, group)
    return lost + (queue.dropped - refused).to(lost.device)


def _of_all_ranks(samples: Samples, group: ProcessGroup) -> Samples:
    """The samples of all ranks, in rank order."""
    if world_size(group) == 1:
        return samples
    features, *numbers = samples.rows
    packed = torch.cat((features.float(), torch.stack([values.float() for values in numbers], dim=1)), dim=1)
    packed = torch.cat(gather_rows(packed, group))
    features, classes, groups, confidence = packed.split((features.shape[1], 1, 1, 1), dim=1)
    return Samples(features, classes[:, 0].long(), groups[:, 0].long(), confidence[:, 0], samples.dropped)


def pixels_per_class(labels: Tensor, num_classes: int) -> Tensor:
    """How many pixels of each class ``labels (B, H, W)`` show: ``(C,)`` float32."""
    target, known = known_classes(labels, num_classes)
    counts = torch.zeros(num_classes, device=labels.device)
    return counts.index_add_(0, target.flatten(), known.float().flatten())
