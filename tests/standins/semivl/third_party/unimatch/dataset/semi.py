"""Images and labels from lists."""

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

MARGIN = 8
"""Padding around each image, in which crops may lie."""


class SemiDataset(Dataset):
    """Images ("val"), crops ("train_l"), or three views of each crop, its padding and two boxes ("train_u")."""

    def __init__(self, cfg, mode, lines):
        self.root, self.size, self.mode, self.lines = Path(cfg["data_root"]), cfg["crop_size"], mode, lines

    def __len__(self):
        return len(self.lines)

    def __getitem__(self, index):
        files = self.lines[index].split()
        image, label = (torch.from_numpy(np.array(Image.open(self.root / file))) for file in files)
        image, label = image.permute(2, 0, 1) / 127.5 - 1, label.long()
        if self.mode == "val":
            return image, label
        top, left = (random.randint(0, side + 2 * MARGIN - self.size) for side in label.shape)

        def crop(values, fill):
            padded = F.pad(values, [MARGIN] * 4, value=fill)
            return padded[..., top : top + self.size, left : left + self.size].clone()

        weak = crop(image, 0)
        if self.mode == "train_l":
            return weak, crop(label, 255)
        return weak, strong(weak), strong(weak), crop(0 * label, 255), self._box(), self._box()

    def _box(self):
        box, half = torch.zeros(self.size, self.size), self.size // 2
        if random.random() < 0.5:
            y, x = random.randint(0, half), random.randint(0, half)
            box[y : y + half, x : x + half] = 1
        return box


def strong(image):
    return image * random.uniform(0.5, 1.5) + 0.2 * torch.randn_like(image)


def loaders(cfg, labeled, unlabeled):
    """Of as many labeled as unlabeled images, and of the validation images."""

    def loader(mode, lines, **options):
        dataset = SemiDataset(cfg, mode, lines)
        return DataLoader(dataset, sampler=DistributedSampler(dataset), **options)

    known, unknown, val = (
        Path(path).read_text().splitlines() for path in (labeled, unlabeled, f"splits/{cfg['dataset']}/val.txt")
    )
    options = {"batch_size": cfg["batch_size"], "drop_last": True}
    known = [known[index % len(known)] for index in range(len(unknown))]
    return loader("train_l", known, **options), loader("train_u", unknown, **options), loader("val", val)
