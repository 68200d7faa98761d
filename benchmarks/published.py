"""The learn step as the published code does it: every intermediate materialized, a loop over prototypes."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE, MOMENTUM, THRESHOLD, IGNORE_INDEX = 0.1, 0.99, 0.8, 255


def grid(length: int, intervals: int) -> Tensor:
    """Positions ``0, s, ..., (intervals - 1) s, length - 1`` along one axis."""
    step = (length - 1) // intervals
    return torch.tensor([*range(0, intervals * step, step), length - 1])


def labeled_points(features: Tensor, labels: Tensor, intervals: int) -> tuple[Tensor, Tensor]:
    """Features ``(N, D)`` and labels ``(N,)`` on a grid of the image, read from maps enlarged to its size."""
    large = F.interpolate(features, labels.shape[1:], mode="bilinear", align_corners=True)
    rows, columns = (grid(length, intervals).to(labels.device) for length in labels.shape[1:])
    points = large[:, :, rows][:, :, :, columns].permute(0, 2, 3, 1).reshape(-1, features.shape[1])
    return points, labels[:, rows][:, :, columns].flatten()


def unlabeled_points(features: Tensor, pseudo: Tensor, confidence: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The same at random confident pixels: all of them are copied out, then a shuffled list of numbers chooses."""
    large = F.interpolate(features, pseudo.shape[1:], mode="bilinear", align_corners=True).permute(0, 2, 3, 1)
    confident = confidence >= THRESHOLD
    points, classes = large[confident], pseudo[confident]
    if len(points) >= most:
        chosen = list(range(len(points)))
        random.shuffle(chosen)
        chosen = sorted(chosen[:most])
        points, classes = points[chosen], classes[chosen]
    return points, classes


def padded(prototypes: Tensor, slots: int) -> Tensor:
    """Prototypes ``(C, 2, K, D)`` as ``(C, 2 * slots, D)``, missing ones being copies of the last."""
    missing = prototypes[:, :, -1:].expand(-1, -1, slots - prototypes.shape[2], -1)
    return torch.cat((prototypes, missing), dim=2).flatten(1, 2)


def loss(points: Tensor, classes: Tensor, prototypes: Tensor) -> Tensor:
    """Cross entropy over the similarity to the nearest of each class's ``prototypes (C, K, D)``."""
    flat = prototypes.flatten(0, 1)
    expanded = points[:, None].expand(-1, len(flat), -1), flat.expand(len(points), -1, -1)
    similarity = F.cosine_similarity(*expanded, dim=2).view(len(points), *prototypes.shape[:2])
    return F.cross_entropy(similarity.amax(2) / TEMPERATURE, classes, ignore_index=IGNORE_INDEX)


@torch.no_grad()
def update(points: Tensor, classes: Tensor, prototypes: Tensor) -> None:
    """Move ``prototypes (C, K, D)`` towards the points nearest to them, one after the other."""
    for c, own in enumerate(prototypes):
        members = points[classes == c]
        if len(members) == 0:
            continue
        nearest = F.cosine_similarity(members[:, None], own[None], dim=2).argmax(1)
        for k, prototype in enumerate(own):
            mine = members[nearest == k]
            if len(mine):
                prototype.mul_(MOMENTUM).add_((1 - MOMENTUM) * mine.mean(0))
