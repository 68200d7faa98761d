"""Loaders of labeled, unlabeled and validation images."""

import math
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler


class VOC(Dataset):
    """Pairs of image and label; of unlabeled images a weak and a strong view, and where they are padding."""

    def __init__(self, root, names, kind, size):
        self.root, self.names, self.kind, self.size = Path(root), names, kind, size

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        name = self.names[index]
        files = self.root / "JPEGImages" / f"{name}.jpg", self.root / "SegmentationClassAug" / f"{name}.png"
        image, label = (torch.from_numpy(np.array(Image.open(file))) for file in files)
        image, label = image.permute(2, 0, 1) / 127.5 - 1, label.long()
        if self.kind == "val":
            return image, label
        top, left = (random.randint(0, side - self.size) for side in label.shape)
        rows, columns = slice(top, top + self.size), slice(left, left + self.size)
        image, label = image[:, rows, columns], label[rows, columns]
        if self.kind == "sup":
            return image, label
        padding = torch.zeros_like(label)
        padding[: random.randint(0, 9)] = 255
        return image, image + 0.1 * torch.randn(3, 1, 1), padding


def get_loader(cfg, seed):
    cfg = cfg["dataset"]
    draw, count = random.Random(seed), 10582 - cfg["n_sup"]

    def loader(split, file, kind):
        names = Path(file).read_text().splitlines()
        if kind != "val":
            names = draw.sample(names * math.ceil(count / len(names)), count)
        dataset = VOC(cfg[split]["data_root"], names, kind, cfg["train_crop_size"])
        options = {"batch_size": cfg["batch_size"], "num_workers": cfg["workers"], "drop_last": kind != "val"}
        return DataLoader(dataset, sampler=DistributedSampler(dataset), **options)

    file = cfg["train"]["data_list"]
    unlabeled = file.replace("labeled.txt", "unlabeled.txt")
    return (
        loader("train", file, "sup"),
        loader("train", unlabeled, "unsup"),
        loader("val", cfg["val"]["data_list"], "val"),
    )
