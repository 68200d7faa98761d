"""Pairs of images and what changed, from lists."""

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import Dataset

MARGIN = 8
"""Padding in which crops may lie."""


class SemiCDDataset(Dataset):
    """Whole pairs ("val"), crops ("train_l"), or three views of each crop, its padding and two boxes ("train_u")."""

    def __init__(self, name, root, mode, size=None, id_path=None, nsample=None):
        self.root, self.mode, self.size = Path(root), mode, size
        self.ids = Path(id_path or f"splits/{name}/test.txt").read_text().splitlines()
        count = nsample or len(self.ids)
        self.ids = [self.ids[index % len(self.ids)] for index in range(count)]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        a, b, mask = (np.array(Image.open(self.root / kind / self.ids[index])) for kind in ("A", "B", "label"))
        a, b = (torch.from_numpy(image).permute(2, 0, 1) / 127.5 - 1 for image in (a, b))
        mask = torch.from_numpy(mask // 255).long()
        if self.mode == "val":
            return a, b, mask, self.ids[index]
        top, left = (random.randint(0, side + MARGIN - self.size) for side in mask.shape)

        def crop(values, fill):
            padded = F.pad(values, [0, MARGIN, 0, MARGIN], value=fill)
            return padded[..., top : top + self.size, left : left + self.size].clone()

        a, b, mask = crop(a, 0), crop(b, 0), crop(mask, 255)
        if self.mode == "train_l":
            return a, b, mask
        ignore = 255 * (mask == 255).long()
        return a, b, strong(a), strong(b), strong(a), strong(b), ignore, self._box(), self._box()

    def _box(self):
        box, half = torch.zeros(self.size, self.size), self.size // 2
        if random.random() < 0.5:
            y, x = random.randint(0, half), random.randint(0, half)
            box[y : y + half, x : x + half] = 1
        return box


def strong(image):
    return image * random.uniform(0.5, 1.5) + 0.2 * torch.randn_like(image)
