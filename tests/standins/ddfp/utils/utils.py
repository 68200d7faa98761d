import logging
import random
from types import SimpleNamespace

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


def mean_over_ranks(loss):
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return SimpleNamespace(val=mean.item() / dist.get_world_size())


def count_overlaps(pairs, classes):
    """Intersection and union of predictions and labels, by class, over all processes."""
    counts = torch.zeros(2, classes)
    for predicted, truth in pairs:
        found, there = (F.one_hot(x.cpu().flatten(), classes).bool() for x in (predicted, truth))
        counts += torch.stack(((found & there).sum(0), (found | there).sum(0)))
    counts = counts.cuda()
    dist.all_reduce(counts)
    return counts.cpu().double().numpy()


def load_state(path, model, optimizer=None, optimizer_nf=None, key="state_dict"):
    checkpoint = torch.load(path, map_location=lambda storage, location: storage.cuda())
    model.load_state_dict(checkpoint[key], strict=False)
    if optimizer is not None:
        optimizer.load_state_dict(checkpoint["optimizer_state"])
        return checkpoint["best_miou"], checkpoint["epoch"]
    if optimizer_nf is not None:
        optimizer_nf.load_state_dict(checkpoint["nf_optimizer_state"])
