"""Rows kept for rare classes (the paper's COCO path): which stay, and which groups they fill. Tensors only."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from brpg_lib.kernels.choosing import put_rows
from brpg_lib.kernels.device import on_host
from brpg_lib.kernels.segments import positions_in_group

MIN_ROWS = 10
"""A group with fewer rows is filled from the rows kept."""


def keep_most_confident(
    kept: Tensor, kept_confidence: Tensor, features: Tensor, confidence: Tensor, classes: Tensor
) -> None:
    """Let new rows take the places of less confident ones of their class.

    Args:
        kept: ``(C, F, D)``, changed in place.
        kept_confidence: ``(C, F)`` float32, changed in place; -1 where a place is free.
        features: ``(N, D)`` new rows.
        confidence: ``(N,)`` of each.
        classes: ``(N,)`` int64 of each; C for a row that does not count.
    """
    if not len(classes):
        return
    num_classes, places = kept_confidence.shape
    classes, order = classes.sort(stable=True)
    counts, position = positions_in_group(classes, num_classes)
    counted, own = classes < num_classes, classes.clamp(max=num_classes - 1)
    # New rows beside the kept ones of their class: the best `places` of both stay.
    columns = int(counts.max()) if on_host(classes.device) else len(classes)
    new = torch.full(
        (num_classes + 1, columns + 1), -3.0, dtype=torch.float32, device=classes.device
    )  # less than a free place
    new[classes, torch.where(counted, position, columns)] = torch.where(counted, confidence[order].float(), -3.0)
    new = new[:num_classes]
    # Free places are the first to go, in their order.
    free = torch.arange(places, dtype=torch.float32, device=classes.device) / places - 2
    both = torch.cat((torch.where(kept_confidence < 0, free, kept_confidence), new), dim=1)
    stays = torch.zeros_like(both, dtype=torch.bool)
    stays.scatter_(1, both.topk(places, dim=1, sorted=False).indices, True)
    leaves, enters = ~stays[:, :places], stays[:, places:] & (new >= 0)
    # The k-th row that enters a class takes the k-th place that is left.
    left = leaves.long().argsort(dim=1, descending=True, stable=True)
    position = torch.where(counted, position, columns)
    number = (enters.cumsum(1) - 1)[own, position].clamp(min=0)
    target = own * places + left[own, number]
    valid = counted & enters[own, position]
    own_rows = (kept.view(-1, kept.shape[2]), features), (kept_confidence.view(-1), confidence)
    put_rows(own_rows, target, order, valid)


class Refill(NamedTuple):
    """What a group of some classes gets from the kept rows.

    Attributes:
        classes: ``(n,)`` int64.
        group: Which one.
        source: ``(n, capacity)`` int64, kept rows in the order of their age to be: the least confident is the oldest.
        rows: ``(n,)`` int64, how many of these count.
    """

    classes: Tensor
    group: int
    source: Tensor
    rows: Tensor


def refills(kept_confidence: Tensor, rows: Tensor, capacity: int, among: Tensor | None) -> list[Refill]:
    """What fills the groups of classes with fewer than :data:`MIN_ROWS` rows.

    Few high rows, but enough low ones: the most confident kept rows become the high group. Few in both: the upper half
    of the kept rows becomes the high group, the lower half the low one.

    Args:
        kept_confidence: ``(C, F)`` float32.
        rows: ``(C, 2)`` int64, rows of the high and the low group.
        capacity: Rows that a group can hold.
        among: ``(C,)`` bool, classes to look at; None for all.
    """
    kept = (kept_confidence >= 0).sum(1)
    few_high, few_low = (rows < MIN_ROWS).unbind(1)
    poor = few_high & (kept > 0)
    rare = (poor if among is None else poor & among.to(poor.device)).nonzero()[:, 0]
    if not len(rare):
        return []
    order = kept_confidence[rare].argsort(dim=1, descending=True, stable=True)
    kept, few_low = kept[rare], few_low[rare]
    half = kept // 2
    high_rows = torch.where(few_low, kept - half, kept).clamp(max=capacity)
    low_rows = half[few_low].clamp(max=capacity)
    low_start = (kept - half)[few_low]
    return [
        Refill(rare, 0, _oldest_first(order, torch.zeros_like(kept), high_rows, capacity), high_rows),
        Refill(rare[few_low], 1, _oldest_first(order[few_low], low_start, low_rows, capacity), low_rows),
    ]


def _oldest_first(order: Tensor, start: Tensor, rows: Tensor, capacity: int) -> Tensor:
    """Entries ``start + rows - 1, ..., start`` of each line of ``order (n, F)``: ``(n, capacity)``, any after them."""
    back = (rows[:, None] - 1 - torch.arange(capacity, device=rows.device)).clamp(min=0)
    return order.gather(1, (start[:, None] + back).clamp(max=order.shape[1] - 1))
