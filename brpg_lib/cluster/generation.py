"""One generation of prototypes: from the queues into the bank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brpg_lib.cluster.bank import PrototypeBank
from brpg_lib.cluster.clusterer import OnlineClusterer, Prototypes
from brpg_lib.cluster.splitter import AdaptiveSplitter
from brpg_lib.collect.queue import FeatureQueue


def new_generation(
    queue: FeatureQueue,
    splitter: AdaptiveSplitter,
    clusterer: OnlineClusterer,
    bank: PrototypeBank,
    among: Tensor | None = None,
    ignored_class: int | None = None,
) -> Tensor:
    """Cluster the queues; a class without new prototypes keeps those it has.

    Args:
        queue: Feature queues.
        splitter: Decides how many prototypes each class gets.
        clusterer: Makes them.
        bank: Takes them.
        among: ``(C,)`` bool, classes that still wait for their first prototypes: of these, those that have enough rows
            by now, without a split. None for all classes.
        ignored_class: Gets no prototypes, whatever its queue holds: the teacher may predict it.

    Returns:
        ``(C, 1, 1)`` bool, classes with new prototypes.
    """
    queue.fill_rare_classes(among=among)
    wanted = splitter(queue).num_prototypes if among is None else _of_ready_classes(queue, splitter.unsplit, among)
    if ignored_class is not None:
        wanted = wanted.clone()
        wanted[ignored_class] = 0
    if not bool(wanted.any()):
        return torch.zeros_like(bank.mask[:, :1, :1])
    return _adopt(bank, clusterer(queue, wanted))


def _of_ready_classes(queue: FeatureQueue, wanted: Tensor, among: Tensor) -> Tensor:
    """Prototypes ``(C, 2)`` of the classes that have as many rows as they want prototypes ``(2,)``, in some group."""
    ready = among.cpu() & ((queue.rows.cpu() >= wanted) & (wanted > 0)).any(1)
    return wanted * ready[:, None]


def _adopt(bank: PrototypeBank, new: Prototypes) -> Tensor:
    """Let new prototypes take the place of those of their class: ``(C, 1, 1)`` bool, classes that have new ones."""
    pad = bank.mask.shape[2] - new.mask.shape[2]
    vectors = nn.functional.pad(new.vectors, (0, 0, 0, pad)).to(bank.prototypes.device)
    mask = nn.functional.pad(new.mask, (0, pad)).to(bank.mask.device)
    fresh = mask.flatten(1).any(1)[:, None, None]
    bank.set(torch.where(fresh[..., None], vectors, bank.prototypes), torch.where(fresh, mask, bank.mask))
    return fresh
