"""Loaders of labeled, unlabeled and validation images."""

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from u2pl.dataset.augmentation import Crop


class VOC(Dataset):
    def __init__(self, root, names, crop):
        self.root, self.names, self.crop = Path(root), names, Crop(**crop)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        name = self.names[index]
        files = self.root / "JPEGImages" / f"{name}.jpg", self.root / "SegmentationClassAug" / f"{name}.png"
        image, label = (torch.from_numpy(np.array(Image.open(file))) for file in files)
        return self.crop(image.permute(2, 0, 1) / 127.5 - 1, label.long())


def get_loader(cfg, seed):
    draw = random.Random(seed)

    def loader(split, file, count=None):
        names = Path(file).read_text().splitlines()
        if count is not None:
            names = draw.choices(names, k=count)
        dataset = VOC(cfg[split]["data_root"], names, cfg[split]["crop"])
        options = {"batch_size": cfg["batch_size"], "num_workers": cfg["workers"], "drop_last": split == "train"}
        return DataLoader(dataset, sampler=DistributedSampler(dataset), **options)

    file, count = cfg["train"]["data_list"], 10582 - cfg["n_sup"]
    unlabeled = file.replace("labeled.txt", "unlabeled.txt")
    return loader("train", file, count), loader("train", unlabeled, count), loader("val", cfg["val"]["data_list"])
