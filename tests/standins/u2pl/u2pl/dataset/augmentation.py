"""Asks for a name that Python 3.10 removed, as upstream does."""

import collections
import random

import torch


class Crop:
    def __init__(self, size, type):
        assert isinstance(size, collections.Iterable)
        self.size, self.random = size, type == "rand"

    def __call__(self, image, label):
        spare = [side - size for side, size in zip(label.shape, self.size)]
        top, left = (random.randint(0, room) if self.random else room // 2 for room in spare)
        rows, columns = slice(top, top + self.size[0]), slice(left, left + self.size[1])
        return image[:, rows, columns], label[rows, columns]


def generate_unsup_data(*maps):
    """Cutmix of images, labels and confidences."""
    height, width = maps[0].shape[2:]
    top, left = random.randint(0, height // 2), random.randint(0, width // 2)
    inside = torch.zeros(height, width, dtype=torch.bool, device=maps[0].device)
    inside[top : top + height // 2, left : left + width // 2] = True
    return [torch.where(inside, x.roll(1, 0), x) for x in maps]
