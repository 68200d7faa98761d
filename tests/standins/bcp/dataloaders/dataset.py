"""Slices and volumes that are a function of their name, in the order of the list files."""

import itertools
import zlib
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

SIDE, DEPTH = 24, 3


def made_up(name, depth):
    """Gray images and labels of 4 classes: bars, brighter the higher the class, in noise."""
    draws = np.random.default_rng(zlib.crc32(name.encode()))
    labels = np.zeros((depth, SIDE, SIDE), np.uint8)
    for label in labels:
        for cls in (1, 2, 3):
            label[:, 6 * cls + draws.integers(-2, 3) :] = cls
    return (labels / 4 + draws.normal(0, 0.1, labels.shape)).astype(np.float32), labels


class BaseDataSets(Dataset):
    def __init__(self, base_dir, split, transform=None):
        lists = {"train": "train_slices.list", "val": "val.list"}
        self.names = (Path(base_dir) / lists[split]).read_text().splitlines()
        self.depth, self.transform = (1 if split == "train" else DEPTH), transform

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        image, label = made_up(self.names[index], self.depth)
        sample = {"image": image, "label": label}
        return sample if self.transform is None else self.transform(sample)


class RandomGenerator:
    """A slice with a channel, mirrored or not."""

    def __call__(self, sample):
        image, label = (torch.from_numpy(sample[key]) for key in ("image", "label"))
        if torch.rand(()) < 0.5:
            image, label = image.flip(2), label.flip(2)
        return {"image": image, "label": label[0]}


class TwoStreamBatchSampler(Sampler):
    """Labeled indices, each once, followed by others for as long as there are labeled ones."""

    def __init__(self, primary, secondary, batch_size, secondary_batch_size):
        self.primary, self.secondary = primary, secondary
        self.sizes = batch_size - secondary_batch_size, secondary_batch_size

    def __iter__(self):
        others = itertools.chain.from_iterable(np.random.permutation(self.secondary) for _ in itertools.count())
        known = np.random.permutation(self.primary)
        for start in range(0, len(self) * self.sizes[0], self.sizes[0]):
            yield [*known[start : start + self.sizes[0]], *itertools.islice(others, self.sizes[1])]

    def __len__(self):
        return len(self.primary) // self.sizes[0]
