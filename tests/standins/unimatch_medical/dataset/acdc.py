"""Slices and volumes that are a function of their name: gray bars in noise, brighter the higher their class."""

import random
import zlib
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

DEPTH = 3


class ACDCDataset(Dataset):
    """Volumes ("val"), slices ("train_l"), or three views of each slice and two boxes ("train_u")."""

    def __init__(self, name, root, mode, size=None, id_path=None, nsample=None):
        self.mode, self.size = mode, size // 2
        self.ids = Path(id_path or f"splits/{name}/valtest.txt").read_text().splitlines()
        self.ids = [self.ids[index % len(self.ids)] for index in range(nsample or len(self.ids))]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        draws = np.random.default_rng(zlib.crc32(self.ids[index].encode()))
        label = torch.zeros(DEPTH if self.mode == "val" else 1, self.size, self.size, dtype=torch.long)
        for plane in label:
            for cls in (1, 2, 3):
                plane[:, self.size // 4 * cls + draws.integers(-2, 3) :] = cls
        image = label / 4 + torch.from_numpy(draws.normal(0, 0.1, label.shape)).float()
        if self.mode == "val":
            return image, label
        if random.random() < 0.5:
            image, label = image.flip(2), label.flip(2)
        if self.mode == "train_l":
            return image, label[0]
        return image, strong(image), strong(image), self._box(), self._box()

    def _box(self):
        box, half = torch.zeros(self.size, self.size), self.size // 2
        if random.random() < 0.5:
            y, x = random.randint(0, half), random.randint(0, half)
            box[y : y + half, x : x + half] = 1
        return box


def strong(image):
    return image * random.uniform(0.5, 1.5) + 0.1 * torch.randn_like(image)
