"""The pixels of a step as candidates for the queues."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from brpg_lib.collect.samples import NONE, Samples
from brpg_lib.kernels import reading
from brpg_lib.kernels.choosing import places_of
from brpg_lib.kernels.device import on_host, widest


class Pixels:
    """All pixels of one feature map as candidates; those of group ``NONE`` are none."""

    def __init__(self, maps: Tensor, classes: Tensor, groups: Tensor, confidence: Tensor) -> None:
        self.maps, self.classes, self.groups, self.confidence = maps, classes, groups, confidence

    def with_groups(self, groups: Tensor) -> Pixels:
        """The same pixels in other groups."""
        return Pixels(self.maps, self.classes, groups, self.confidence)

    def candidates(self, at_most: int) -> Samples:
        """The candidates as samples; there are no more than ``at_most``."""
        place, valid = places_of(self.groups != NONE, at_most)
        image, *positions = reading.positions_of(place, (len(self.maps), *self.maps.shape[2:]))
        where: Any = (image, slice(None), *positions)
        vectors = self.maps[where]
        groups = torch.where(valid, self.groups[place], NONE)
        nothing = torch.zeros((), dtype=torch.int64, device=place.device)
        return Samples(vectors.float(), self.classes[place], groups, self.confidence[place], nothing)


class Source(NamedTuple):
    """The pixels of labeled or of unlabeled images, and how many ``()`` were left out as not finite."""

    pixels: Pixels
    dropped: Tensor


def probabilities(logits: Tensor) -> Tensor:
    """Class probabilities ``(B * h * w, C)`` float32."""
    return rearrange(logits.float().softmax(dim=1), "b c ... -> (b ...) c")


def labels_at(labels: Tensor, size: tuple[int, ...]) -> Tensor:
    """Labels at feature resolution, by nearest neighbour: ``(B, h, w)`` int64."""
    for axis, length in enumerate(size, start=1):
        labels = labels.index_select(axis, reading.nearest(labels.shape[axis], length, labels.device))
    return labels.long()


def sums_of_own_class(probability: Tensor, labels: Tensor, has_class: Tensor) -> Tensor:
    """For each class, the sum over its pixels of the finite probabilities ``(B, C, H, W)`` of it, and how many.

    Returns:
        ``(2, C)``, float64 where there is: float32 would lose the small addends of a million pixels.
    """
    wide, num_classes = widest(labels.device), probability.shape[1]
    if on_host(labels.device):
        own = probability.gather(1, labels[:, None])[:, 0]
        counted = has_class & own.isfinite()
        values = torch.stack((torch.where(counted, own, 0.0), counted), dim=-1).flatten(0, -2).to(wide)
        return values.new_zeros(num_classes, 2).index_add_(0, labels.flatten(), values).T
    # Elsewhere all pixels of a class would wait for one place to add to.
    axes = (0, *range(2, probability.ndim))
    classes = torch.arange(num_classes, device=labels.device).view(-1, *[1] * (labels.ndim - 1))
    counted = (labels[:, None] == classes) & has_class[:, None] & probability.isfinite()
    sums = torch.where(counted, probability, 0.0).sum(axes, dtype=wide)
    return torch.stack((sums, counted.sum(axes).to(wide)))
