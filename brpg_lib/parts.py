"""The modules that a head is made of, from what its user says."""

from __future__ import annotations

from typing import NamedTuple

import torch

from brpg_lib.cluster.bank import PrototypeBank
from brpg_lib.cluster.clusterer import OnlineClusterer
from brpg_lib.cluster.splitter import AdaptiveSplitter
from brpg_lib.collect.queue import DTYPES, FeatureQueue
from brpg_lib.collect.sampler import ConfidenceSampler
from brpg_lib.config import BRPGConfig
from brpg_lib.learn.limits import ClassLimits
from brpg_lib.learn.loss import PrototypeContrastiveLoss
from brpg_lib.ranks.collectives import ProcessGroup
from brpg_lib.schedule import Schedule
from brpg_lib.validation import MAX_COUNT, require, require_device, require_integer


class Parts(NamedTuple):
    """One module for each job; they share no state."""

    config: BRPGConfig
    sampler: ConfidenceSampler
    queue: FeatureQueue
    splitter: AdaptiveSplitter
    clusterer: OnlineClusterer
    bank: PrototypeBank
    limits: ClassLimits
    criterion: PrototypeContrastiveLoss


def build_parts(
    num_classes: int,
    feature_dim: int,
    schedule: Schedule,
    config: BRPGConfig | None,
    seed: int,
    queue_dtype: torch.dtype,
    queue_device: str | torch.device | None,
    process_group: ProcessGroup,
) -> Parts:
    """The parts of a :class:`~brpg_lib.PrototypeHead`, which says what the arguments are.

    Raises:
        ValueError: An argument is out of range, or does not fit another one; the message names it.
    """
    config = BRPGConfig() if config is None else config
    require_integer("num_classes", num_classes, 1)
    require_integer("seed", seed, 0, MAX_COUNT)
    require(queue_dtype in DTYPES, "queue_dtype", f"one of {DTYPES}", repr(queue_dtype))
    require_device("queue_device", queue_device)
    require(isinstance(schedule, Schedule), "schedule", "a Schedule", type(schedule).__name__)
    require(isinstance(config, BRPGConfig), "config", "a BRPGConfig", type(config).__name__)
    ignored = config.ignore_index
    require(not 0 <= ignored < num_classes, "config.ignore_index", f"none of the {num_classes} classes", ignored)
    queue = FeatureQueue(
        num_classes, feature_dim, **config.arguments_of(FeatureQueue), dtype=queue_dtype, device=queue_device
    )
    fits = schedule.min_rows <= queue.capacity
    require(fits, "schedule.min_rows", f"at most the {queue.capacity} rows of a queue", schedule.min_rows)
    return Parts(
        config=config,
        sampler=ConfidenceSampler(
            num_classes, **config.arguments_of(ConfidenceSampler), seed=seed, process_group=process_group
        ),
        queue=queue,
        splitter=AdaptiveSplitter(num_classes, **config.arguments_of(AdaptiveSplitter)),
        clusterer=OnlineClusterer(
            num_classes, **config.arguments_of(OnlineClusterer), seed=seed, process_group=process_group
        ),
        bank=PrototypeBank(num_classes, feature_dim, **config.arguments_of(PrototypeBank), process_group=process_group),
        limits=ClassLimits(num_classes, config.pseudo_label_share),
        criterion=PrototypeContrastiveLoss(**config.arguments_of(PrototypeContrastiveLoss)),
    )
