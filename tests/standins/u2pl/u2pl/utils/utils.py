import logging
import random

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F


def init_log(name, level):
    logger = logging.getLogger(name)
    logger.setLevel(level)
    logger.addHandler(logging.StreamHandler())
    logger.propagate = False
    return logger


def set_random_seed(seed):
    for function in (random.seed, np.random.seed, torch.manual_seed):
        function(seed)


class AverageMeter:
    """The mean of a loss over all processes."""

    def update(self, loss):
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        self.val = mean.item() / dist.get_world_size()


def count_overlaps(pairs, classes):
    """Intersection and union of predictions and labels, by class, over all processes."""
    counts = torch.zeros(2, classes)
    for predicted, truth in pairs:
        found, there = (F.one_hot(x.cpu().flatten(), classes).bool() for x in (predicted, truth))
        counts += torch.stack(((found & there).sum(0), (found | there).sum(0)))
    counts = counts.cuda()
    dist.all_reduce(counts)
    return counts.cpu().double().numpy()


def load_state(path, model, optimizer, key):
    checkpoint = torch.load(path, map_location=lambda storage, location: storage.cuda())
    model.load_state_dict(checkpoint[key], strict=False)
    optimizer.load_state_dict(checkpoint["optimizer_state"])
    return checkpoint["best_miou"], checkpoint["epoch"]
