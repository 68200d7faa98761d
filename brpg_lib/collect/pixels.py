"""The pixels of a step as candidates for the queues."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from brpg_lib.collect.samples import NONE, Samples
from brpg_lib.kernels import reading
from brpg_lib.kernels.choosing import places_of


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
        height, width = self.maps.shape[2:]
        vectors = self.maps[place // (height * width), :, place // width % height, place % width]
        groups = torch.where(valid, self.groups[place], NONE)
        nothing = torch.zeros((), dtype=torch.int64, device=place.device)
        return Samples(vectors.float(), self.classes[place], groups, self.confidence[place], nothing)


class Source(NamedTuple):
    """The pixels of labeled or of unlabeled images, and how many ``()`` were left out as not finite."""

    pixels: Pixels
    dropped: Tensor


def probabilities(logits: Tensor) -> Tensor:
    """Class probabilities ``(B * h * w, C)`` float32."""
    return rearrange(logits.float().softmax(dim=1), "b c h w -> (b h w) c")


def labels_at(labels: Tensor, size: tuple[int, ...]) -> Tensor:
    """Labels at feature resolution, by nearest neighbour: ``(B, h, w)`` int64."""
    rows = reading.nearest(labels.shape[1], size[0], labels.device)
    columns = reading.nearest(labels.shape[2], size[1], labels.device)
    return labels[:, rows[:, None], columns].long()
